//! Confining the process and its threads.

use rustix::thread::CapabilitySet;

use super::{
    error::SandboxError,
    filesystem::restrict_file_system,
    settings::{Role, SandboxSettings, SeccompMode},
    syscalls,
};

/// Confines this thread and all that it starts later. To be called while it is the only thread.
///
/// # Errors
///
/// See [`SandboxError`]. A kernel without landlock is not an error; it is logged.
pub fn confine_process(settings: &SandboxSettings) -> Result<(), SandboxError> {
    drop_privileges().map_err(SandboxError::Privileges)?;
    limit_arenas();
    if !settings.no_landlock {
        restrict_file_system(&settings.socket_directories)?;
    }
    confine_thread(Role::Process, settings.seccomp)
}

/// Confines this thread to the system calls of its role.
///
/// # Errors
///
/// [`SandboxError::Seccomp`].
pub fn confine_thread(role: Role, mode: SeccompMode) -> Result<(), SandboxError> {
    syscalls::install(role, mode).map_err(SandboxError::Seccomp)
}

/// Drops all capabilities, for programs executed later as well.
fn drop_privileges() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = rustix::thread::CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)
}

/// Limits the C library's allocator to its main arena. With more it opens files at times: to count
/// the processors, and to read the overcommit policy before it returns memory. No request allocates
/// memory, so that threads hardly contend for the one arena.
fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call only sets a parameter of the allocator, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}
