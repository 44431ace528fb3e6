//! cargo on the host: the workspace that `cargo vm` belongs to, and what is built from it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::host::{interrupt, process::Process, progress};

/// The workspace that this harness belongs to.
pub(crate) fn workspace() -> Result<PathBuf> {
    let crate_directory = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    let workspace = crate_directory
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default();
    if !workspace.join("guest-driver/module").is_dir() {
        bail!(
            "{} is not the vdma workspace; run `cargo vm` from inside it",
            workspace.display()
        );
    }
    Ok(workspace)
}

/// The `cargo` that runs this program, in `workspace`.
pub(crate) fn cargo(workspace: &Path) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(workspace).stdin(Stdio::null());
    // `cargo run` sets these for this program; the builds it starts must not inherit them.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// A program that cargo has built.
#[derive(Debug, PartialEq)]
pub(crate) struct Artifact {
    /// Name of its target.
    pub(crate) name: String,
    /// For a QEMU plugin, a shared library.
    pub(crate) executable: PathBuf,
    /// The manifest of its package.
    pub(crate) manifest: PathBuf,
    /// Whether this is the target's test program.
    pub(crate) is_test: bool,
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    profile: Option<Profile>,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Runs a cargo build and returns the programs it built. Compiler messages go to standard error.
pub(crate) fn build(command: &mut Command, what: &str) -> Result<Vec<Artifact>> {
    command
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped());
    let _step = progress::step(what);
    let mut cargo = Process::spawn(command)?;
    let mut text = String::new();
    if let Some(mut stdout) = cargo.take_stdout() {
        std::io::Read::read_to_string(&mut stdout, &mut text)
            .context("cannot read cargo's output")?;
    }
    let status = cargo.wait()?;
    interrupt::check()?;
    if !status.success() {
        bail!("{what} failed; cargo's messages are above");
    }
    Ok(text.lines().filter_map(artifact).collect())
}

/// Parses a line of cargo's JSON output; `None` unless it reports a program.
fn artifact(line: &str) -> Option<Artifact> {
    let message: Message = serde_json::from_str(line).ok()?;
    (message.reason == "compiler-artifact").then_some(())?;
    let library = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "so");
    Some(Artifact {
        name: message.target?.name,
        executable: message
            .executable
            .or_else(|| message.filenames.into_iter().find(library))?,
        manifest: message.manifest_path.unwrap_or_default(),
        is_test: message.profile.is_some_and(|profile| profile.test),
    })
}

/// Returns the program called `name` among those that were built.
pub(crate) fn named(built: &[Artifact], name: &str) -> Result<PathBuf> {
    built
        .iter()
        .find(|artifact| artifact.name == name)
        .map(|artifact| artifact.executable.clone())
        .with_context(|| format!("the workspace builds no program called {name}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{artifact, named};

    #[test]
    fn finds_programs_among_cargos_messages() {
        let text = r#"{"reason":"compiler-artifact","target":{"name":"lib"},"executable":null,"filenames":["/t/lib.rlib"]}
{"reason":"compiler-artifact","target":{"name":"plugin"},"executable":null,"filenames":["/t/plugin.so"]}
{"reason":"compiler-artifact","target":{"name":"vdma"},"executable":"/t/vdma","fresh":true,"manifest_path":"/w/Cargo.toml","profile":{"test":true}}
not json
{"reason":"build-finished","success":true}"#;
        let built: Vec<_> = text.lines().filter_map(artifact).collect();
        assert_eq!(built.len(), 2);
        assert!(built[1].is_test && built[1].manifest == Path::new("/w/Cargo.toml"));
        assert_eq!(named(&built, "plugin").unwrap(), Path::new("/t/plugin.so"));
        assert_eq!(named(&built, "vdma").unwrap(), Path::new("/t/vdma"));
        assert!(named(&built, "lib").is_err());
    }
}
