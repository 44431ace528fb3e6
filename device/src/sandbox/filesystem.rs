//! Landlock: no path can be opened, created or executed any more.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::error::SandboxError;

/// The newest ABI that this is written for; older kernels enforce the part they support.
const INTERFACE: ABI = ABI::V6;

/// Denies all access to the file system by path, and to TCP ports; what is open stays usable. Files
/// in `directories` can still be removed: sockets are, at exit.
///
/// # Errors
///
/// The kernel rejects the rules. A kernel without landlock is not an error.
pub fn restrict_file_system(directories: &[PathBuf]) -> Result<(), SandboxError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(INTERFACE))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(INTERFACE)))
        .and_then(|rules| rules.scope(Scope::from_all(INTERFACE)))
        .and_then(Ruleset::create)
        .map_err(SandboxError::Landlock)?;
    for directory in directories {
        let opened = PathFd::new(directory).map_err(|source| SandboxError::Directory {
            path: directory.clone(),
            source,
        })?;
        rules = rules
            .add_rule(PathBeneath::new(opened, AccessFs::RemoveFile))
            .map_err(SandboxError::Landlock)?;
    }
    let status = rules.restrict_self().map_err(SandboxError::Landlock)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        log::info!("this kernel has no landlock; access to files is not restricted");
    }
    Ok(())
}
