//! The tools: a directory tree of Debian packages that programs are run in, through bubblewrap.
//!
//! It brings the QEMU and the kernel tool chain that the host may not have, and changes nothing
//! on the host. Nothing in it is configured; it is only unpacked.

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

/// What the tools are made of.
const PACKAGES: &str = include_str!("../../../ci/image/tools.packages");

/// What is added to build kernels and modules with clang.
const CLANG_PACKAGES: &str = include_str!("../../../ci/image/debug-tools.packages");

/// Packages whose versions show in what is compiled for a kernel.
const COMPILERS: [&str; 6] = [
    "bindgen", "binutils", "gcc-14", "pahole", "rust-src", "rustc",
];

/// Bumped when the way the tree is made changes.
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

    /// The same with clang.
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

    /// Version of QEMU among the packages that the tools are made of.
    pub(crate) fn qemu_version(snapshot: &Snapshot<'_>) -> Result<String> {
        snapshot
            .closure(&names(PACKAGES))?
            .into_iter()
            .find(|package| package.name == "qemu-system-x86")
            .map(|package| package.version)
            .context("the tools hold no qemu-system-x86")
    }

    /// A sandbox in which the tools are the root directory.
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
    /// Shows the host's `path` read-only as `inside`, which lies below `/mnt` or `/tmp`.
    #[must_use]
    pub(crate) fn read(mut self, path: &Path, inside: &str) -> Self {
        self.command.arg("--ro-bind").arg(path).arg(inside);
        self
    }

    /// Shows the host's `path` as `inside`, writable.
    #[must_use]
    pub(crate) fn write(mut self, path: &Path, inside: &str) -> Self {
        self.command.arg("--bind").arg(path).arg(inside);
        self
    }

    /// Cuts the sandbox off from the network.
    #[must_use]
    pub(crate) fn without_network(mut self) -> Self {
        self.command.arg("--unshare-net");
        self
    }

    /// The directory that the program starts in.
    #[must_use]
    pub(crate) fn directory(mut self, inside: &str) -> Self {
        self.command.args(["--chdir", inside]);
        self
    }

    /// The finished command: `program` in the sandbox, for arguments to be added.
    #[must_use]
    pub(crate) fn command(mut self, program: &str) -> Command {
        self.command.arg("--").arg(program);
        self.command
    }
}

/// What the packages' own scripts would have made, as far as it is needed.
fn complete(root: &Path) -> Result<()> {
    for (link, target) in [("usr/bin/awk", "mawk"), ("usr/bin/cc", "gcc-14")] {
        symlink(target, root.join(link)).with_context(|| format!("cannot make the link {link}"))?;
    }
    // Mount points, and files that programs expect to exist.
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
