//! Packages that the host itself needs, few as they are: all else runs from the tools' tree.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::host::{process, progress};

/// A program that has to be on the host, and the package that brings it.
pub(crate) struct Need {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
    only_as_user: bool,
}

/// Everything that is needed.
const NEEDS: [Need; 5] = [
    Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
        purpose: "builds the guest image",
        only_as_user: false,
    },
    Need {
        program: "bwrap",
        package: "bubblewrap",
        purpose: "runs QEMU and the kernel tool chain without installing them",
        only_as_user: false,
    },
    Need {
        program: "gcc",
        package: "gcc",
        purpose: "links Rust programs",
        only_as_user: false,
    },
    Need {
        program: "gpgv",
        package: "gpgv",
        purpose: "verifies package lists",
        only_as_user: false,
    },
    Need {
        program: "newuidmap",
        package: "uidmap",
        purpose: "lets an ordinary user build the guest image",
        only_as_user: true,
    },
];

/// A file that has to be on the host.
const LIBC_ARCHIVE: (&str, &str) = ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev");

/// The needs that apply to this user, each with whether it is met.
pub(crate) fn needs() -> impl Iterator<Item = (&'static Need, bool)> {
    let root = rustix::process::geteuid().is_root();
    NEEDS
        .iter()
        .filter(move |need| !(need.only_as_user && root))
        .map(|need| (need, find_program(need.program).is_some()))
}

/// Packages that are missing.
pub(crate) fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = needs()
        .filter(|(_, met)| !met)
        .map(|(need, _)| need.package)
        .collect();
    if !Path::new(LIBC_ARCHIVE.0).exists() {
        missing.push(LIBC_ARCHIVE.1);
    }
    missing
}

/// Installs what is missing when run as root; otherwise says how to.
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
    // The lists of a fresh machine are often missing or stale.
    if apt(&install).is_err() {
        apt(&["update"])?;
        apt(&install).context("the host's own packages could not be installed")?;
    }
    Ok(())
}

/// Where `program` is in `$PATH`, or in the directories that an ordinary user's `$PATH` lacks.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}
