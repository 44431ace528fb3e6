//! The workspace's own programs, built by cargo for the host and for guests.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::host::cargo::{build, cargo, named};

/// Target of the guest's programs. They are linked statically, so they run in any guest.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The guest's programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) agent: PathBuf,
    pub(crate) suites: PathBuf,
    pub(crate) demo: PathBuf,
    /// The command-line tool for users in guests.
    pub(crate) tool: PathBuf,
}

/// Builds the backend.
pub(crate) fn backend(workspace: &Path) -> Result<PathBuf> {
    let mut command = cargo(workspace);
    command.args(["build", "--release", "--package", "vhost-device-dma"]);
    let built = build(&mut command, "building the backend")?;
    named(&built, "vhost-device-dma")
}

/// Builds the plugin with which QEMU counts a guest's instructions.
pub(crate) fn counting_plugin(workspace: &Path) -> Result<PathBuf> {
    let mut command = cargo(workspace);
    command.args([
        "build",
        "--release",
        "--package",
        "instruction-counter-plugin",
    ]);
    let built = build(&mut command, "building the counting plugin")?;
    named(&built, "instruction_counter_plugin")
}

/// Builds the programs that run in guests.
pub(crate) fn for_guests(workspace: &Path) -> Result<Programs> {
    let mut command = cargo(workspace);
    command
        .args(["build", "--release", "--target", GUEST_TARGET])
        .args(["--package", "guest-agent", "--package", "guest-suites"])
        .args(["--package", "guest-demo", "--package", "vdma"])
        // The initial file system holds them in memory twice, so only function names are kept, for
        // backtraces.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        // These would override the flags for the target.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env(
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C target-feature=+crt-static",
        );
    let built = build(&mut command, "building the guest's programs")?;
    Ok(Programs {
        agent: named(&built, "guest-agent")?,
        suites: named(&built, "guest-suites")?,
        demo: named(&built, "vdma-demo")?,
        tool: named(&built, "vdma")?,
    })
}
