//! The few packages that the host itself needs; everything else runs from the tools' tree.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::host::{process, progress};

/// A program that the host must have, and the package that contains it.
pub(crate) struct Requirement {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
    only_as_user: bool,
}

/// All required programs.
const REQUIREMENTS: [Requirement; 5] = [
    Requirement {
        program: "mmdebstrap",
        package: "mmdebstrap",
        purpose: "builds the guest image",
        only_as_user: false,
    },
    Requirement {
        program: "bwrap",
        package: "bubblewrap",
        purpose: "runs QEMU and the kernel tool chain without installing them",
        only_as_user: false,
    },
    Requirement {
        program: "gcc",
        package: "gcc",
        purpose: "links Rust programs",
        only_as_user: false,
    },
    Requirement {
        program: "gpgv",
        package: "gpgv",
        purpose: "verifies package lists",
        only_as_user: false,
    },
    Requirement {
        program: "newuidmap",
        package: "uidmap",
        purpose: "lets an ordinary user build the guest image",
        only_as_user: true,
    },
];

/// A file that the host must have, and the package that contains it.
const LIBC_ARCHIVE: (&str, &str) = ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev");

/// Returns the requirements that apply to this user, and whether each is met.
pub(crate) fn all() -> impl Iterator<Item = (&'static Requirement, bool)> {
    let root = rustix::process::geteuid().is_root();
    REQUIREMENTS
        .iter()
        .filter(move |one| !(one.only_as_user && root))
        .map(|one| (one, find_program(one.program).is_some()))
}

/// Returns the packages that are missing.
pub(crate) fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = all()
        .filter(|(_, met)| !met)
        .map(|(one, _)| one.package)
        .collect();
    if !Path::new(LIBC_ARCHIVE.0).exists() {
        missing.push(LIBC_ARCHIVE.1);
    }
    missing
}

/// Installs missing packages when run as root; otherwise the error says how to.
pub(crate) fn provide_packages() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!("missing on this host: {list}; run: sudo apt-get install --yes {list}");
    }
    let _step = progress::step(format!("installing {list} on this host"));
    let apt = |arguments: &[&str]| {
        process::output(
            Command::new("apt-get")
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive"),
            &format!("apt-get {}", arguments.join(" ")),
        )
    };
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&missing);
    // On a fresh machine the package lists are often missing or stale.
    if apt(&install).is_err() {
        apt(&["update"])?;
        apt(&install).context("the host's own packages could not be installed")?;
    }
    Ok(())
}

/// Finds `program` in `$PATH`, or in the directories that an ordinary user's `$PATH` lacks.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}
