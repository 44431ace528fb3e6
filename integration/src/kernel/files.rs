//! The files needed to boot a kernel: its image, and the modules for the root file system.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    host::{cache, cache::Cache, packages, packages::Snapshot, process, progress, tools::Tools},
    kernel::stock::StockKernel,
};

/// Kernel modules that a guest needs before it has a root file system.
const ROOT_MODULES: [&str; 3] = ["virtio_blk", "erofs", "overlay"];

/// Where those are in a kernel tree.
const ROOT_MODULES_IN_TREE: [&str; 3] = [
    "drivers/block/virtio_blk.ko",
    "fs/erofs/erofs.ko",
    "fs/overlayfs/overlay.ko",
];

/// Incremented when the layout of the files changes.
const RECIPE: &str = "1";

/// The files of one kernel.
#[derive(Clone, Debug)]
pub(crate) struct KernelFiles {
    /// Release, as `uname -r` reports it.
    pub(crate) release: String,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// The modules that the root file system needs, in the order of loading.
    pub(crate) root_modules: Vec<PathBuf>,
}

impl KernelFiles {
    /// Downloads and unpacks `kernel` unless it is in the cache.
    pub(crate) fn stock(
        cache: &Cache,
        snapshot: &Snapshot<'_>,
        tools: &Tools,
        kernel: &StockKernel,
    ) -> Result<Self> {
        let key = cache::key([RECIPE.as_bytes(), kernel.package_version.as_bytes()]);
        let release = kernel.release.clone();
        let directory = cache.entry("kernels", &format!("{release}-{key}"), |directory| {
            let files = snapshot.download(&kernel.image)?;
            let _step = progress::step(format!("unpacking kernel {release}"));
            packages::unpack(&files, directory)?;
            index_modules(tools, directory, &release)?;
            for file in root_modules(&directory.join("usr/lib/modules").join(&release))? {
                decompress(tools, directory, &file)?;
            }
            Ok(())
        })?;
        let modules = directory.join("usr/lib/modules").join(&release);
        Ok(Self {
            image: either(
                modules.join("vmlinuz"),
                directory.join(format!("boot/vmlinuz-{release}")),
            ),
            root_modules: root_modules(&modules)?
                .into_iter()
                .map(|path| match path.extension() {
                    Some(extension) if extension == "xz" => path.with_extension(""),
                    _ => path,
                })
                .collect(),
            release,
        })
    }

    /// The files of a kernel that was built in `tree`.
    pub(crate) fn built(tree: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = tree.join(name);
            fs::read_to_string(&path).with_context(|| {
                format!(
                    "{}: --kernel takes a tree in which a kernel has been built",
                    path.display()
                )
            })
        };
        let image = tree.join("arch/x86/boot/bzImage");
        fs::metadata(&image)
            .with_context(|| format!("{}: the tree holds no bootable image", image.display()))?;
        Ok(Self {
            release: read("include/config/kernel.release")?.trim().to_owned(),
            image,
            // A missing module is built in.
            root_modules: ROOT_MODULES_IN_TREE
                .iter()
                .map(|name| tree.join(name))
                .filter(|path| path.exists())
                .collect(),
        })
    }
}

/// The configuration of a stock kernel whose image is `files`.
pub(crate) fn config_of(files: &KernelFiles) -> PathBuf {
    let directory = files.image.parent().unwrap_or(Path::new("/"));
    either(
        directory.join("config"),
        directory.join(format!("config-{}", files.release)),
    )
}

fn either(first: PathBuf, second: PathBuf) -> PathBuf {
    if first.exists() { first } else { second }
}

/// Writes `modules.dep`, which the packages would generate on installation.
fn index_modules(tools: &Tools, directory: &Path, release: &str) -> Result<()> {
    process::output(
        tools
            .sandbox()
            .write(directory, "/mnt/kernel")
            .command("depmod")
            .args(["-b", "/mnt/kernel/usr", release]),
        "indexing the kernel's modules",
    )?;
    Ok(())
}

/// Writes the decompressed module next to the compressed one.
fn decompress(tools: &Tools, directory: &Path, file: &Path) -> Result<()> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return Ok(());
    }
    let inside = file
        .strip_prefix(directory)
        .context("a module outside the kernel's directory")?;
    process::output(
        tools
            .sandbox()
            .write(directory, "/mnt/kernel")
            .command("xz")
            .args(["--decompress", "--keep"])
            .arg(Path::new("/mnt/kernel").join(inside)),
        "decompressing a kernel module",
    )?;
    Ok(())
}

/// Files of [`ROOT_MODULES`] and what they depend on, dependencies first.
fn root_modules(modules: &Path) -> Result<Vec<PathBuf>> {
    let path = modules.join("modules.dep");
    let dependencies =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = Vec::new();
    for name in ROOT_MODULES {
        // An unlisted module is built in.
        for file in dependencies_of(&dependencies, name) {
            let file = modules.join(file);
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// `name`'s file and those it depends on, in the order of loading, from `modules.dep`.
fn dependencies_of<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    for line in text.lines() {
        let Some((file, needed)) = line.split_once(':') else {
            continue;
        };
        let base = file.rsplit('/').next().unwrap_or(file);
        if base.split('.').next() == Some(name) {
            let mut order: Vec<&str> = needed.split_whitespace().collect();
            order.reverse();
            order.push(file);
            return order;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_dependencies_first() {
        let text = "kernel/fs/a.ko.xz: kernel/lib/c.ko.xz kernel/lib/b.ko.xz\n\
                    kernel/lib/b.ko.xz:\n";
        assert_eq!(
            dependencies_of(text, "a"),
            [
                "kernel/lib/b.ko.xz",
                "kernel/lib/c.ko.xz",
                "kernel/fs/a.ko.xz"
            ]
        );
        assert!(dependencies_of(text, "built_in").is_empty());
    }

    #[test]
    fn a_tree_without_a_kernel_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(KernelFiles::built(dir.path()).is_err());
        fs::create_dir_all(dir.path().join("arch/x86/boot")).unwrap();
        fs::create_dir_all(dir.path().join("include/config")).unwrap();
        fs::write(dir.path().join("arch/x86/boot/bzImage"), "").unwrap();
        fs::write(
            dir.path().join("include/config/kernel.release"),
            "7.3.4-x\n",
        )
        .unwrap();
        let files = KernelFiles::built(dir.path()).unwrap();
        assert_eq!(files.release, "7.3.4-x");
        assert!(files.root_modules.is_empty());
    }
}
