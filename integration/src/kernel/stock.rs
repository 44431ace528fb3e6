//! Stock kernels: those that the mirror offers, and the selection of one.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::host::packages::Package;

/// The flavour of Debian's kernels that guests run: small, and complete for a VM.
const FLAVOUR: &str = "cloud-amd64";

/// The first kernel version whose Rust interfaces the driver can be built on.
const OLDEST: (u32, u32) = (7, 2);

/// A kernel that the mirror offers, with sources of exactly the same version.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct StockKernel {
    /// As `uname -r` reports it: `7.3.4+deb13-cloud-amd64`.
    pub(crate) release: String,
    /// `7.3`.
    pub(crate) series: String,
    /// `7.3.4`.
    pub(crate) version: String,
    /// Version of its packages.
    pub(crate) package_version: String,
    /// Packages that hold the image and its modules.
    pub(crate) image: Vec<Package>,
    /// The headers package, for its `Module.symvers`.
    pub(crate) headers: Package,
    /// The source package.
    pub(crate) source: Package,
}

impl StockKernel {
    /// The part of the release after the version: `+deb13-cloud-amd64`.
    pub(crate) fn local_version(&self) -> &str {
        self.release
            .strip_prefix(self.version.as_str())
            .unwrap_or_default()
    }
}

/// Returns the kernels among `packages` that guests can run, newest first.
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
        let Some((major, minor, _)) = parse_version(version) else {
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
    found.sort_by_key(|kernel| std::cmp::Reverse(parse_version(&kernel.version)));
    found
}

/// Selects a kernel by name: `stock`, a series, a version or a release.
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
            "no kernel {wanted:?}: the mirror offers {}; `--refresh` checks it again",
            kernels
                .iter()
                .map(|kernel| kernel.version.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// Parses a version such as `7.3.4`; `7.3` has patch level 0.
fn parse_version(version: &str) -> Option<(u32, u32, u32)> {
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
            let (major, minor, _) = parse_version(version).unwrap();
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
}
