//! Debian packages: a snapshot of the mirror's package lists, and packages resolved, downloaded
//! and unpacked from it.
//!
//! apt does the work, with directories of its own, so that the host's state is neither used nor
//! changed and no privileges are needed. A snapshot does not change until it is refreshed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::host::{cache, cache::Cache, interrupt, process, progress};

/// The Debian release of guests and tools.
pub(crate) const SUITE: &str = "trixie";

/// The suite that kernels and QEMU come from.
const BACKPORTS: &str = "trixie-backports";

/// Prefers backports for kernels and QEMU; everything else comes from the release.
const PREFERENCES: &str = "Package: linux-* qemu-* seabios ipxe-qemu\n\
                           Pin: release n=trixie-backports\n\
                           Pin-Priority: 900\n";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One version of one package.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) architecture: String,
}

impl Package {
    /// File name as apt writes it: the epoch's colon is escaped.
    fn file_name(&self) -> String {
        let version = self.version.replace(':', "%3a");
        format!("{}_{version}_{}.deb", self.name, self.architecture)
    }
}

/// The mirror's package lists at one point in time.
pub(crate) struct Snapshot<'a> {
    cache: &'a Cache,
    directory: PathBuf,
    mirror: String,
}

impl<'a> Snapshot<'a> {
    /// Fetches the mirror's current lists.
    pub(crate) fn fetch(cache: &'a Cache, mirror: &str) -> Result<(Self, String)> {
        let _step = progress::step(format!("fetching the package lists of {SUITE}"));
        let scratch = tempfile::Builder::new()
            .prefix("lists-")
            .tempdir_in(cache.directory("scratch")?)
            .context("cannot create a scratch directory")?;
        let fetched = Self::open(cache, scratch.path(), mirror);
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(scratch.path().join(directory))
                .context("cannot create apt's directories")?;
        }
        fs::write(scratch.path().join("status"), "").context("cannot write apt's status")?;
        fs::write(scratch.path().join("preferences"), PREFERENCES)
            .context("cannot write apt's preferences")?;
        fs::write(scratch.path().join("sources.list"), sources(mirror))
            .context("cannot write apt's sources")?;
        process::output(
            fetched.apt("apt-get").args(["update", "--error-on=any"]),
            &format!("fetching the package lists of {SUITE} from {mirror}"),
        )
        .context("name another mirror with --mirror URL")?;
        let mut releases = Vec::new();
        for entry in
            fs::read_dir(scratch.path().join("lists")).context("cannot list a directory")?
        {
            let path = entry.context("cannot list a directory")?.path();
            if path.to_string_lossy().ends_with("InRelease") {
                releases.push(fs::read(&path).context("cannot read a release file")?);
            }
        }
        releases.sort();
        let id = cache::key(
            releases
                .iter()
                .map(Vec::as_slice)
                .chain([mirror.as_bytes()]),
        );
        let directory = cache.entry("lists", &id, |target| {
            for name in ["lists", "cache", "status", "preferences", "sources.list"] {
                fs::rename(scratch.path().join(name), target.join(name))
                    .with_context(|| format!("cannot move apt's {name}"))?;
            }
            Ok(())
        })?;
        let snapshot = Self::open(cache, &directory, mirror);
        // Each later query of these lists becomes faster by seconds.
        process::output(
            snapshot.apt("apt-cache").arg("gencaches"),
            "indexing the package lists",
        )?;
        Ok((snapshot, id))
    }

    /// The lists that [`Snapshot::fetch`] called `id`, if they are there.
    pub(crate) fn reopen(cache: &'a Cache, id: &str, mirror: &str) -> Option<Self> {
        let directory = cache.path("lists").join(id);
        directory
            .exists()
            .then(|| Self::open(cache, &directory, mirror))
    }

    fn open(cache: &'a Cache, directory: &Path, mirror: &str) -> Self {
        Self {
            cache,
            directory: directory.to_owned(),
            mirror: mirror.to_owned(),
        }
    }

    /// Returns a command for `program` of apt that uses this snapshot only.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let at = |name: &str| self.directory.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::SourceList={}", at("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::Etc::Preferences={}", at("preferences")),
            "Dir::Etc::PreferencesParts=/dev/null".to_owned(),
            format!("Dir::State={}", at("")),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::Status={}", at("status")),
            format!("Dir::Cache={}", at("cache")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            // The cache may be in a directory that apt's own user cannot access.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }

    /// Resolves `wanted` and all dependencies, as apt would install them on an empty system.
    pub(crate) fn closure(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        let memo = self.directory.join(format!(
            "closure-{}.json",
            cache::key(wanted.iter().map(|name| name.as_bytes()))
        ));
        if let Ok(text) = fs::read(&memo)
            && let Ok(packages) = serde_json::from_slice(&text)
        {
            return Ok(packages);
        }
        let text = process::output(
            self.apt("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .args(wanted),
            "resolving packages",
        )
        .map_err(|error| match missing_package(&error.to_string()) {
            Some(name) => anyhow!("{SUITE} has no package called {name}; check its name"),
            None => error,
        })?;
        let mut packages = installed_by(&text);
        packages.sort();
        if packages.is_empty() {
            bail!("apt resolved no package for {}", wanted.join(" "));
        }
        let json = serde_json::to_vec(&packages).context("cannot encode a package list")?;
        cache::write_atomically(&memo, &json)?;
        Ok(packages)
    }

    /// Every version of every package that the backports offer.
    pub(crate) fn backports(&self) -> Result<Vec<Package>> {
        let files = process::output(
            self.apt("apt-get").args([
                "indextargets",
                "--format",
                "$(FILENAME)",
                "Identifier: Packages",
                &format!("Codename: {BACKPORTS}"),
            ]),
            "listing the package lists",
        )?;
        let file = files
            .lines()
            .next()
            .with_context(|| format!("{} has no {BACKPORTS}", self.mirror))?;
        let text = process::output(
            Command::new("/usr/lib/apt/apt-helper").args(["cat-file", file]),
            "reading a package list",
        )?;
        Ok(parse_list(&text))
    }

    /// Downloads what is not yet in the cache and returns the path of each package's file, in
    /// order.
    pub(crate) fn download(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let pool = self.cache.directory("debs")?;
        let missing: Vec<&Package> = packages
            .iter()
            .filter(|package| !pool.join(package.file_name()).exists())
            .collect();
        if !missing.is_empty() {
            let scratch = tempfile::Builder::new()
                .prefix("download-")
                .tempdir_in(self.cache.directory("scratch")?)
                .context("cannot create a scratch directory")?;
            let _step = progress::step(format!("downloading {} packages", missing.len()));
            process::output(
                self.apt("apt-get")
                    .current_dir(scratch.path())
                    .arg("download")
                    .args(
                        missing
                            .iter()
                            .map(|package| format!("{}={}", package.name, package.version)),
                    ),
                "downloading packages",
            )
            .with_context(|| {
                format!(
                    "{} may no longer have these versions; `--refresh` resolves them again",
                    self.mirror
                )
            })?;
            for package in missing {
                let name = package.file_name();
                fs::rename(scratch.path().join(&name), pool.join(&name))
                    .with_context(|| format!("apt did not download {name}"))?;
            }
        }
        Ok(packages
            .iter()
            .map(|package| pool.join(package.file_name()))
            .collect())
    }

    /// The directory of the lists, for tools that run apt themselves.
    pub(crate) fn lists(&self) -> PathBuf {
        self.directory.join("lists")
    }

    /// apt preferences of this snapshot.
    pub(crate) fn preferences(&self) -> PathBuf {
        self.directory.join("preferences")
    }

    /// apt sources of this snapshot, one line each.
    pub(crate) fn sources(&self) -> String {
        sources(&self.mirror)
    }
}

fn sources(mirror: &str) -> String {
    format!(
        "deb [signed-by={KEYRING}] {mirror} {SUITE} main\n\
         deb [signed-by={KEYRING}] {mirror} {BACKPORTS} main\n"
    )
}

/// Unpacks package files over each other into `root`, several at a time.
///
/// The files belong to the calling user; nothing is configured.
pub(crate) fn unpack(files: &[PathBuf], root: &Path) -> Result<()> {
    // base-files holds the links from /bin to /usr/bin and so on, which have to exist first.
    let is_base = |path: &&PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("base-files_"))
    };
    for file in files.iter().filter(is_base) {
        unpack_one(file, root)?;
    }
    let rest: Vec<&PathBuf> = files.iter().filter(|path| !is_base(path)).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|_| {
                scope.spawn(|| {
                    while let Some(file) =
                        rest.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        unpack_one(file, root)?;
                    }
                    Ok::<(), anyhow::Error>(())
                })
            })
            .collect();
        for handle in handles {
            handle
                .join()
                .map_err(|_| anyhow!("a thread that unpacked packages panicked"))??;
        }
        Ok(())
    })
}

fn unpack_one(file: &Path, root: &Path) -> Result<()> {
    interrupt::check()?;
    process::output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file)
            .arg(root),
        &format!("unpacking {}", file.display()),
    )?;
    Ok(())
}

/// Returns the package that apt could not locate, if that is what its message says.
fn missing_package(message: &str) -> Option<&str> {
    message
        .lines()
        .find_map(|line| line.split("Unable to locate package ").nth(1))
        .map(str::trim)
}

/// Reads `Inst NAME (VERSION ORIGIN [ARCHITECTURE])` lines.
fn installed_by(simulation: &str) -> Vec<Package> {
    simulation
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            let inner = rest.strip_prefix('(')?;
            let version = inner.split(' ').next()?;
            let architecture = inner.split('[').nth(1)?.split(']').next()?;
            Some(Package {
                name: name.to_owned(),
                version: version.to_owned(),
                architecture: architecture.to_owned(),
            })
        })
        .collect()
}

/// Reads the stanzas of a Packages file.
fn parse_list(text: &str) -> Vec<Package> {
    text.split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            Some(Package {
                name: field("Package")?,
                version: field("Version")?,
                architecture: field("Architecture")?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_would_install() {
        let text = "NOTE: This is only a simulation!\n\
            Inst libc6 (2.41-12 Debian:13.2/stable [amd64])\n\
            Inst qemu-system-x86 (1:11.1.3+ds-1~bpo13+1 Debian Backports:stable-backports [amd64]) []\n\
            Conf libc6 (2.41-12 Debian:13.2/stable [amd64])\n";
        let packages = installed_by(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].name, "libc6");
        assert_eq!(
            packages[1].file_name(),
            "qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb"
        );
    }

    #[test]
    fn reads_package_lists() {
        let text = "Package: a\nVersion: 1\nArchitecture: all\n\nPackage: b\nVersion: 2\n\
                    Architecture: amd64\nPackage-Type: deb\n\nnonsense\n";
        let packages = parse_list(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(
            (packages[1].name.as_str(), packages[1].version.as_str()),
            ("b", "2")
        );
    }

    #[test]
    fn names_the_package_that_does_not_exist() {
        assert_eq!(
            missing_package("resolving failed: E: Unable to locate package fioo"),
            Some("fioo")
        );
        assert_eq!(missing_package("E: something else"), None);
    }
}
