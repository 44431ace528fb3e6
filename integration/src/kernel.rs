//! Stock kernels: which there are, which one is meant, and the files that booting it takes.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{self, Cache};
use crate::packages::{self, Package, Snapshot};
use crate::tools::Tools;
use crate::{process, progress};

/// The flavour of Debian's kernels that guests run: small, with everything a VM needs.
const FLAVOUR: &str = "cloud-amd64";

/// Kernel modules that a guest needs before it has a root file system.
const ROOT_MODULES: [&str; 3] = ["virtio_blk", "erofs", "overlay"];

/// The first kernel version whose Rust interfaces the driver can be built on.
const OLDEST: (u32, u32) = (7, 2);

/// Bumped when the way the files are laid out changes.
const RECIPE: &str = "1";

/// A kernel that the mirror offers, with sources of exactly the same version.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct StockKernel {
    /// What `uname -r` says: `7.3.4+deb13-cloud-amd64`.
    pub(crate) release: String,
    /// `7.3`.
    pub(crate) series: String,
    /// `7.3.4`.
    pub(crate) version: String,
    /// Version of its packages.
    pub(crate) package_version: String,
    /// Packages that hold the image and its modules.
    image: Vec<Package>,
    /// The headers package, for its `Module.symvers`.
    headers: Package,
    /// The source package.
    source: Package,
}

impl StockKernel {
    /// What follows the version in the release: `+deb13-cloud-amd64`.
    pub(crate) fn local_version(&self) -> &str {
        self.release
            .strip_prefix(self.version.as_str())
            .unwrap_or_default()
    }
}

/// The kernels among `packages` that guests can run, newest first.
pub(crate) fn offered(packages: &[Package]) -> Vec<StockKernel> {
    let by_name: BTreeMap<&str, Vec<&Package>> =
        packages.iter().fold(BTreeMap::new(), |mut map, package| {
            map.entry(package.name.as_str()).or_default().push(package);
            map
        });
    let find = |name: &str, version: &str| {
        by_name
            .get(name)?
            .iter()
            .find(|package| package.version == version)
            .map(|package| (*package).clone())
    };
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for package in packages {
        let Some(release) = package.name.strip_prefix("linux-image-") else {
            continue;
        };
        let Some(version) = release
            .strip_suffix(FLAVOUR)
            .and_then(|rest| rest.split('+').next())
        else {
            continue;
        };
        let Some((major, minor, _)) = numbers(version) else {
            continue;
        };
        let series = format!("{major}.{minor}");
        let (Some(headers), Some(source)) = (
            find(&format!("linux-headers-{release}"), &package.version),
            find(&format!("linux-source-{series}"), &package.version),
        ) else {
            continue;
        };
        if (major, minor) < OLDEST || !seen.insert(release.to_owned()) {
            continue;
        }
        let image = ["image", "binary", "modules", "base"]
            .iter()
            .filter_map(|part| find(&format!("linux-{part}-{release}"), &package.version))
            .collect();
        found.push(StockKernel {
            release: release.to_owned(),
            series,
            version: version.to_owned(),
            package_version: package.version.clone(),
            image,
            headers,
            source,
        });
    }
    found.sort_by_key(|kernel| std::cmp::Reverse(numbers(&kernel.version)));
    found
}

/// The kernel that `--kernel` names: `stock`, a series, a version or a release.
pub(crate) fn choose<'a>(kernels: &'a [StockKernel], wanted: &str) -> Result<&'a StockKernel> {
    let chosen = if wanted == "stock" {
        kernels.first()
    } else {
        kernels.iter().find(|kernel| {
            [&kernel.series, &kernel.version, &kernel.release]
                .iter()
                .any(|name| *name == wanted)
        })
    };
    match chosen {
        Some(kernel) => Ok(kernel),
        None => bail!(
            "no kernel {wanted:?}: the mirror offers {}; `--refresh` looks again",
            kernels
                .iter()
                .map(|kernel| kernel.version.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// The files of one kernel, unpacked.
#[derive(Clone, Debug)]
pub(crate) struct KernelFiles {
    directory: PathBuf,
    release: String,
}

impl KernelFiles {
    /// Downloads and unpacks `kernel` unless it is in the cache.
    pub(crate) fn provide(
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
            let modules = directory.join("usr/lib/modules").join(&release);
            process::output(
                tools
                    .sandbox()
                    .write(directory, "/mnt/kernel")
                    .command("depmod")
                    .args(["-b", "/mnt/kernel/usr", &release]),
                "indexing the kernel's modules",
            )?;
            for file in root_modules(&modules)? {
                if file.extension().is_some_and(|extension| extension == "xz") {
                    let inside = Path::new("/mnt/kernel").join(
                        file.strip_prefix(directory)
                            .context("a module outside the kernel's directory")?,
                    );
                    process::output(
                        tools
                            .sandbox()
                            .write(directory, "/mnt/kernel")
                            .command("xz")
                            .args(["--decompress", "--keep"])
                            .arg(inside),
                        "decompressing a kernel module",
                    )?;
                }
            }
            Ok(())
        })?;
        Ok(Self { directory, release })
    }

    /// What `uname -r` will say.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The bootable image.
    pub(crate) fn image(&self) -> PathBuf {
        let in_modules = self.modules().join("vmlinuz");
        if in_modules.exists() {
            in_modules
        } else {
            self.directory
                .join(format!("boot/vmlinuz-{}", self.release))
        }
    }

    /// The directory of the kernel's modules.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("usr/lib/modules").join(&self.release)
    }

    /// The modules that the root file system needs, decompressed, in the order of loading.
    pub(crate) fn root_modules(&self) -> Result<Vec<PathBuf>> {
        Ok(root_modules(&self.modules())?
            .into_iter()
            .map(|path| match path.extension() {
                Some(extension) if extension == "xz" => path.with_extension(""),
                _ => path,
            })
            .collect())
    }

    /// The kernel's configuration.
    fn config(&self) -> PathBuf {
        let in_modules = self.modules().join("config");
        if in_modules.exists() {
            in_modules
        } else {
            self.directory.join(format!("boot/config-{}", self.release))
        }
    }
}

/// Files of [`ROOT_MODULES`] and what they depend on, dependencies first.
fn root_modules(modules: &Path) -> Result<Vec<PathBuf>> {
    let path = modules.join("modules.dep");
    let dependencies =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut files = Vec::new();
    for name in ROOT_MODULES {
        // A module that is not listed is built in.
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

/// A kernel tree that modules can be built against.
#[derive(Clone, Debug)]
pub(crate) struct KernelTree {
    pub(crate) directory: PathBuf,
    /// Variables that `make` needs to build modules for it.
    pub(crate) make_arguments: Vec<String>,
}

/// How the tree is prepared; run inside the tools.
const PREPARE: &str = include_str!("../../ci/kernel/prepare-tree.sh");

impl KernelTree {
    /// Prepares the tree of `kernel` unless it is in the cache.
    pub(crate) fn provide(
        cache: &Cache,
        snapshot: &Snapshot<'_>,
        tools: &Tools,
        kernel: &StockKernel,
        files: &KernelFiles,
    ) -> Result<Self> {
        let key = cache::key([
            PREPARE.as_bytes(),
            kernel.package_version.as_bytes(),
            tools.key().as_bytes(),
        ]);
        let name = format!("{}-{key}", kernel.release);
        let directory = cache.entry("kernel-trees", &name, |directory| {
            let debs = snapshot.download(&[kernel.source.clone(), kernel.headers.clone()])?;
            let _step = progress::step(format!(
                "preparing the source tree of kernel {} for modules",
                kernel.version
            ));
            let parts = tempfile::tempdir_in(cache.directory("scratch")?)
                .context("cannot create a scratch directory")?;
            packages::unpack(&debs, parts.path())?;
            fs::copy(files.config(), parts.path().join("config"))
                .context("the kernel image brings no configuration")?;
            fs::write(parts.path().join("prepare-tree.sh"), PREPARE)
                .context("cannot write a script")?;
            let log = cache
                .directory("logs")?
                .join(format!("kernel-tree-{}.log", kernel.release));
            process::run_logged(
                tools
                    .sandbox()
                    .without_network()
                    .read(parts.path(), "/mnt/parts")
                    .write(directory, "/mnt/kernel")
                    .command("sh")
                    .arg("/mnt/parts/prepare-tree.sh")
                    .arg(format!(
                        "/mnt/parts/usr/src/linux-source-{}.tar.xz",
                        kernel.series
                    ))
                    .arg("/mnt/parts/config")
                    .arg(format!(
                        "/mnt/parts/usr/src/linux-headers-{}/Module.symvers",
                        kernel.release
                    ))
                    .arg(kernel.local_version())
                    .arg("/mnt/kernel"),
                "preparing the kernel tree",
                &log,
            )
        })?;
        Ok(Self {
            directory,
            make_arguments: vec![
                "CC=gcc-14".to_owned(),
                "HOSTCC=gcc-14".to_owned(),
                format!("LOCALVERSION={}", kernel.local_version()),
            ],
        })
    }
}

/// `7.3.4` as numbers; `7.3` has patch level 0.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let major = parts.next()??;
    let minor = parts.next()??;
    let patch = parts.next().unwrap_or(Some(0))?;
    Some((major, minor, patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "amd64".to_owned(),
        }
    }

    fn sample() -> Vec<StockKernel> {
        let mut packages = vec![package("linux-image-cloud-amd64", "7.10.2-1")];
        for (version, source) in [
            ("7.2.9", true),
            ("7.2.12", true),
            ("7.10.2", true),
            ("7.3.4", false),
            ("6.19.1", true),
        ] {
            let (major, minor, _) = numbers(version).unwrap();
            let build = format!("{version}-1");
            for part in ["image", "headers", "binary"] {
                let name = format!("linux-{part}-{version}+deb13-cloud-amd64");
                packages.push(package(&name, &build));
            }
            let other = format!("linux-image-{version}+deb13-cloud-amd64-dbg");
            packages.push(package(&other, &build));
            if source {
                packages.push(package(&format!("linux-source-{major}.{minor}"), &build));
            }
        }
        offered(&packages)
    }

    #[test]
    fn offers_kernels_with_sources_newest_first() {
        let kernels = sample();
        let versions: Vec<&str> = kernels.iter().map(|k| k.version.as_str()).collect();
        assert_eq!(versions, ["7.10.2", "7.2.12", "7.2.9"]);
        assert_eq!(kernels[0].image.len(), 2);
        assert_eq!(kernels[0].local_version(), "+deb13-cloud-amd64");
    }

    #[test]
    fn chooses_by_series_version_or_release() {
        let kernels = sample();
        let version = |wanted: &str| choose(&kernels, wanted).map(|k| k.version.clone());
        assert_eq!(version("stock").unwrap(), "7.10.2");
        assert_eq!(version("7.2").unwrap(), "7.2.12");
        assert_eq!(version("7.2.9").unwrap(), "7.2.9");
        assert_eq!(version("7.2.9+deb13-cloud-amd64").unwrap(), "7.2.9");
        let error = version("7.1").unwrap_err().to_string();
        assert!(error.contains("7.10.2, 7.2.12, 7.2.9"), "{error}");
    }

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
}
