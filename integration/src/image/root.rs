//! The guest's root file system: a configured minimal Debian as a read-only EROFS image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::host::{
    cache,
    cache::Cache,
    packages::{SUITE, Snapshot},
    process, progress, tools,
    tools::Tools,
};

/// Packages of every guest.
const PACKAGES: &str = include_str!("../../../ci/image/guest.packages");

/// Incremented when the construction of the image changes.
const RECIPE: &str = "1";

/// Files that are left out of the image.
const LEFT_OUT: [&str; 4] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
];

/// Returns the image with [`PACKAGES`] and `extra`, built unless it is in the cache.
pub(crate) fn provide(
    cache: &Cache,
    snapshot: &Snapshot<'_>,
    tools: &Tools,
    extra: &[String],
) -> Result<PathBuf> {
    let mut include: Vec<&str> = tools::names(PACKAGES);
    include.extend(extra.iter().map(String::as_str));
    include.sort_unstable();
    include.dedup();
    let mut wanted = vec!["?essential"];
    wanted.extend(&include);
    let closure = snapshot.closure(&wanted)?;
    let content = serde_json::to_vec(&closure).context("cannot encode a package list")?;
    let key = cache::key([RECIPE.as_bytes(), &content]);
    let entry = cache.entry("guest-images", &key, |directory| {
        let files = snapshot.download(&closure)?;
        let _step = progress::step(match extra {
            [] => "building the guest image".to_owned(),
            extra => format!("building the guest image with {}", extra.join(", ")),
        });
        let parts = tempfile::tempdir_in(cache.directory("scratch")?)
            .context("cannot create a scratch directory")?;
        let archives = parts.path().join("archives");
        fs::create_dir(&archives).context("cannot create a directory")?;
        for file in &files {
            let name = file.file_name().context("a package file without a name")?;
            fs::hard_link(file, archives.join(name))
                .with_context(|| format!("cannot link {}", file.display()))?;
        }
        let tarball = parts.path().join("root.tar");
        let log = cache
            .directory("logs")?
            .join(format!("guest-image-{key}.log"));
        process::run_logged(
            &mut mmdebstrap(snapshot, &include, &archives, &tarball),
            "building the guest image",
            &log,
        )?;
        process::run_logged(
            tools
                .sandbox()
                .without_network()
                .read(parts.path(), "/mnt/parts")
                .write(directory, "/mnt/image")
                .command("mkfs.erofs")
                .args(["--quiet", "--tar=f", "-T0", "/mnt/image/root.erofs"])
                .arg("/mnt/parts/root.tar"),
            "packing the guest image",
            &log,
        )
    })?;
    Ok(entry.join("root.erofs"))
}

fn mmdebstrap(
    snapshot: &Snapshot<'_>,
    include: &[&str],
    archives: &Path,
    tarball: &Path,
) -> Command {
    let mut command = Command::new("mmdebstrap");
    let mode = if rustix::process::geteuid().is_root() {
        "root"
    } else {
        "unshare"
    };
    command
        .arg(format!("--mode={mode}"))
        .args(["--variant=essential", "--format=tar", "--skip=update"])
        .arg(format!("--include={}", include.join(",")))
        .args(["--aptopt=APT::Install-Recommends \"false\""])
        // dpkg need not sync: the image is discarded if its build fails.
        .arg("--dpkgopt=force-unsafe-io");
    for path in LEFT_OUT {
        command.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    command
        .arg(format!(
            "--setup-hook=sync-in {} /var/lib/apt/lists",
            quoted(&snapshot.lists())
        ))
        .arg(format!(
            "--setup-hook=copy-in {} /etc/apt",
            quoted(&snapshot.preferences())
        ))
        .arg("--setup-hook=mkdir -p \"$1/var/cache/apt/archives\"")
        .arg(format!(
            "--setup-hook=sync-in {} /var/cache/apt/archives",
            quoted(archives)
        ))
        .arg(SUITE)
        .arg(tarball)
        .args(snapshot.sources().lines());
    command
}

/// Quotes `path` as one word for mmdebstrap's hooks, which are split as a shell does.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}
