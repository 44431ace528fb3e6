//! Builds the driver's kernel module against a prepared kernel tree.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    host::{cache, cache::Cache, process, progress, tools::Tools},
    kernel::tree::KernelTree,
};

/// The module's file.
const MODULE: &str = "vdma.ko";

/// Directories with the module's sources: its own, and the protocol's.
const SOURCES: [&str; 2] = ["guest-driver/module", "protocol/src/wire"];

/// Incremented when the build procedure changes.
const RECIPE: &str = "2";

/// Directory of the kernel's modules, as guests have it.
pub(crate) const MODULES: &str = "lib/modules";

/// The module as it is installed: a directory that holds [`MODULES`].
#[derive(Clone, Debug)]
pub(crate) struct InstalledModule {
    directory: PathBuf,
    release: String,
}

impl InstalledModule {
    /// `lib/modules/RELEASE`, with the module and the index that `modprobe` reads.
    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.join(self.installed())
    }

    /// Where [`InstalledModule::tree`] belongs in a guest, relative to its root directory.
    pub(crate) fn installed(&self) -> PathBuf {
        Path::new(MODULES).join(&self.release)
    }

    /// The module's file in a guest.
    pub(crate) fn file(&self) -> PathBuf {
        Path::new("/")
            .join(self.installed())
            .join("updates")
            .join(MODULE)
    }
}

/// The module built from the sources in `workspace`, from the cache if they have not changed.
///
/// Warnings are errors. The error of a failed build contains all compiler output.
pub(crate) fn provide(
    cache: &Cache,
    tools: &Tools,
    tree: &KernelTree,
    workspace: &Path,
) -> Result<InstalledModule> {
    let release = tree.release()?;
    let mut files = Vec::new();
    for directory in SOURCES {
        list(workspace, Path::new(directory), &mut files)?;
    }
    files.sort();
    let tree_name = tree.directory.as_os_str().as_encoded_bytes();
    let mut parts: Vec<Vec<u8>> = vec![RECIPE.into(), tree_name.to_vec()];
    for file in &files {
        parts.push(file.as_os_str().as_encoded_bytes().to_vec());
        let path = workspace.join(file);
        parts.push(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let key = cache::key(parts.iter().map(Vec::as_slice));
    let entry = cache.entry("modules", &key, |directory| {
        let _step = progress::step("building the kernel module");
        let sources = tempfile::tempdir_in(cache.directory("scratch")?)
            .context("cannot create a scratch directory")?;
        for file in &files {
            let target = sources.path().join(file);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)
                    .with_context(|| format!("cannot create {}", parent.display()))?;
            }
            fs::copy(workspace.join(file), &target)
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        let log = cache.directory("logs")?.join(format!("module-{key}.log"));
        // A failed build of the same sources may have left a log.
        fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
        let jobs = std::thread::available_parallelism().map_or(2, usize::from);
        let built = process::run_logged(
            tools
                .sandbox()
                .without_network()
                .read(&tree.directory, "/mnt/kernel")
                .write(sources.path(), "/mnt/source")
                .directory("/mnt/kernel")
                .command("make")
                .arg(format!("-j{jobs}"))
                .args(&tree.make_arguments)
                .args(["KCFLAGS=-Werror", "KRUSTFLAGS=-Dwarnings"])
                .args(["M=/mnt/source/guest-driver/module", "modules"]),
            "building the kernel module",
            &log,
        );
        if let Err(error) = built {
            crate::host::interrupt::check()?;
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.is_empty() {
                return Err(error);
            }
            bail!(
                "the kernel module does not build:\n{}",
                text.trim_end().replace("/mnt/source/", "")
            );
        }
        let built = sources.path().join(SOURCES[0]).join(MODULE);
        install(tools, &built, directory, &release)
    })?;
    Ok(InstalledModule {
        directory: entry,
        release,
    })
}

/// Installs the module where `make modules_install` does, and writes the index next to it.
fn install(tools: &Tools, built: &Path, directory: &Path, release: &str) -> Result<()> {
    let updates = directory.join(MODULES).join(release).join("updates");
    fs::create_dir_all(&updates).with_context(|| format!("cannot create {}", updates.display()))?;
    fs::copy(built, updates.join(MODULE)).with_context(|| format!("the build made no {MODULE}"))?;
    process::output(
        tools
            .sandbox()
            .without_network()
            .write(directory, "/mnt/root")
            .command("depmod")
            .args(["--basedir", "/mnt/root", release]),
        "indexing the kernel module",
    )?;
    Ok(())
}

/// Files below `directory` that are sources, as paths relative to `base`.
fn list(base: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let path = base.join(directory);
    let entries = fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", path.display()))?;
        let inside = directory.join(entry.file_name());
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot read {}", path.display()))?;
        if kind.is_dir() {
            list(base, &inside, files)?;
        } else if is_source(&inside) {
            files.push(inside);
        }
    }
    Ok(())
}

/// Whether `path` is a source, and not a product of a manual build in that directory.
fn is_source(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let kind = path.extension().map(|e| e.to_string_lossy());
    (name == "Kbuild" || matches!(kind.as_deref(), Some("rs" | "c" | "h")))
        && !name.starts_with('.')
        && !name.ends_with(".mod.c")
        && name != "bindings_generated.rs"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::is_source;

    #[test]
    fn sources_are_distinguished_from_build_products() {
        for name in [
            "main.rs",
            "virtio/queue.rs",
            "linux/shim.c",
            "linux/shim.h",
            "Kbuild",
        ] {
            assert!(is_source(Path::new(name)), "{name}");
        }
        for name in [
            "main.o",
            "vdma.mod.c",
            "bindings_generated.rs",
            ".main.o.cmd",
            "README.md",
            "Module.symvers",
        ] {
            assert!(!is_source(Path::new(name)), "{name}");
        }
    }
}
