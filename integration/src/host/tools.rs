//! The tools: a tree of Debian packages that serves as the root directory of bubblewrap sandboxes.
//!
//! It contains the QEMU and the kernel tool chain that the host may lack, and changes nothing on
//! the host. Its packages are unpacked, not configured.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::host::{
    cache,
    cache::Cache,
    packages,
    packages::{Package, Snapshot},
    progress,
};

/// Packages of the tools.
const PACKAGES: &str = include_str!("../../../ci/image/tools.packages");

/// Further packages, to build kernels and modules with clang.
const CLANG_PACKAGES: &str = include_str!("../../../ci/image/debug-tools.packages");

/// Packages whose versions affect what is compiled for a kernel.
const COMPILERS: [&str; 6] = [
    "bindgen", "binutils", "gcc-14", "pahole", "rust-src", "rustc",
];

/// Incremented when the construction of the tree changes.
const RECIPE: &str = "1";

/// The tools' directory tree.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    root: PathBuf,
    compilers: String,
}

impl Tools {
    /// Unpacks the tools unless they are in the cache.
    pub(crate) fn provide(cache: &Cache, snapshot: &Snapshot<'_>) -> Result<Self> {
        Self::of(cache, snapshot, &names(PACKAGES))
    }

    /// As [`Tools::provide`], with clang.
    pub(crate) fn with_clang(cache: &Cache, snapshot: &Snapshot<'_>) -> Result<Self> {
        let mut wanted = names(PACKAGES);
        wanted.extend(names(CLANG_PACKAGES));
        Self::of(cache, snapshot, &wanted)
    }

    fn of(cache: &Cache, snapshot: &Snapshot<'_>, wanted: &[&str]) -> Result<Self> {
        let closure = snapshot.closure(wanted)?;
        let root = cache.entry("tools", &key(&closure), |root| {
            let files = snapshot.download(&closure)?;
            let _step = progress::step("unpacking the build tools and QEMU");
            packages::unpack(&files, root)?;
            complete(root)
        })?;
        Ok(Self {
            root,
            compilers: compilers(&closure),
        })
    }

    /// Returns the version of QEMU in the tools.
    pub(crate) fn qemu_version(snapshot: &Snapshot<'_>) -> Result<String> {
        snapshot
            .closure(&names(PACKAGES))?
            .into_iter()
            .find(|package| package.name == "qemu-system-x86")
            .map(|package| package.version)
            .context("the tools hold no qemu-system-x86")
    }

    /// Returns a sandbox with the tools as its root directory.
    pub(crate) fn sandbox(&self) -> Sandbox {
        let mut command = Command::new("bwrap");
        command
            .args(["--unshare-pid", "--die-with-parent", "--new-session"])
            .arg("--ro-bind")
            .arg(&self.root)
            .arg("/")
            .args(["--dev-bind", "/dev", "/dev"])
            .args(["--proc", "/proc"])
            .args(["--tmpfs", "/tmp"])
            .args(["--tmpfs", "/mnt"])
            .args(["--clearenv"])
            .args(["--setenv", "PATH", "/usr/sbin:/usr/bin"])
            .args(["--setenv", "LC_ALL", "C.UTF-8"])
            .args(["--setenv", "HOME", "/tmp"]);
        Sandbox { command }
    }

    /// Identifies the compilers among the tools, which is what a kernel tree depends on.
    pub(crate) fn compilers(&self) -> &str {
        &self.compilers
    }
}

/// A command line for bubblewrap under construction.
pub(crate) struct Sandbox {
    command: Command,
}

impl Sandbox {
    /// Mounts the host's `path` read-only at `inside`, which is below `/mnt` or `/tmp`.
    #[must_use]
    pub(crate) fn read(mut self, path: &Path, inside: &str) -> Self {
        self.command.arg("--ro-bind").arg(path).arg(inside);
        self
    }

    /// Mounts the host's `path` writable at `inside`.
    #[must_use]
    pub(crate) fn write(mut self, path: &Path, inside: &str) -> Self {
        self.command.arg("--bind").arg(path).arg(inside);
        self
    }

    /// Removes network access.
    #[must_use]
    pub(crate) fn without_network(mut self) -> Self {
        self.command.arg("--unshare-net");
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub(crate) fn directory(mut self, inside: &str) -> Self {
        self.command.args(["--chdir", inside]);
        self
    }

    /// Returns the command that runs `program` in the sandbox; the caller adds its arguments.
    #[must_use]
    pub(crate) fn command(mut self, program: &str) -> Command {
        self.command.arg("--").arg(program);
        self.command
    }
}

/// Creates those files of the packages' maintainer scripts that are needed.
fn complete(root: &Path) -> Result<()> {
    for (link, target) in [("usr/bin/awk", "mawk"), ("usr/bin/cc", "gcc-14")] {
        symlink(target, root.join(link)).with_context(|| format!("cannot make the link {link}"))?;
    }
    // Mount points, and files that programs expect.
    for directory in ["dev", "proc", "tmp", "mnt", "run"] {
        fs::create_dir_all(root.join(directory))
            .with_context(|| format!("cannot create {directory}"))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
        .context("cannot write etc/passwd")?;
    fs::write(root.join("etc/group"), "root:x:0:\n").context("cannot write etc/group")?;
    Ok(())
}

/// Package names in a list with `#` comments.
pub(crate) fn names(list: &str) -> Vec<&str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Names and versions of [`COMPILERS`] in `closure`.
fn compilers(closure: &[Package]) -> String {
    closure
        .iter()
        .filter(|package| COMPILERS.contains(&package.name.as_str()))
        .map(|package| format!("{}={} ", package.name, package.version))
        .collect()
}

fn key(closure: &[Package]) -> String {
    let json = serde_json::to_vec(closure).unwrap_or_default();
    cache::key([RECIPE.as_bytes(), &json])
}

#[cfg(test)]
mod tests {
    use super::names;

    #[test]
    fn comments_and_blank_lines_are_not_packages() {
        assert_eq!(names("# x\n\n bash \nfio"), ["bash", "fio"]);
    }
}
