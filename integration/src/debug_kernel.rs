//! The debug kernel: KASAN, lockdep, kmemleak and fault injection, built from Debian's sources.

use anyhow::{Context, Result};
use std::fs;
use std::path::PathBuf;

use crate::cache::{self, Cache};
use crate::kernel::StockKernel;
use crate::packages::{self, Snapshot};
use crate::tools::Tools;
use crate::{process, progress};

/// What is switched on.
const FRAGMENT: &str = include_str!("../../ci/kernel/debug.config");

/// How it is built; run inside the tools.
const BUILD: &str = include_str!("../../ci/kernel/build-debug.sh");

/// The tree in which the debug kernel of `kernel`'s version is built, unless it is in the cache.
///
/// `tools` have to hold clang.
pub(crate) fn provide(
    cache: &Cache,
    snapshot: &Snapshot<'_>,
    tools: &Tools,
    kernel: &StockKernel,
) -> Result<PathBuf> {
    let key = cache::key([
        FRAGMENT.as_bytes(),
        BUILD.as_bytes(),
        kernel.package_version.as_bytes(),
        tools.compilers().as_bytes(),
    ]);
    let name = format!("{}-debug-{key}", kernel.version);
    cache.entry("kernel-trees", &name, |directory| {
        let debs = snapshot.download(std::slice::from_ref(&kernel.source))?;
        let log = cache
            .directory("logs")?
            .join(format!("kernel-debug-{}.log", kernel.version));
        progress::say(&format!(
            "vdma: building the debug kernel takes about ten minutes, once; its log is {}",
            log.display()
        ));
        let _step = progress::step(format!("building the debug kernel {}", kernel.version));
        let parts = tempfile::tempdir_in(cache.directory("scratch")?)
            .context("cannot create a scratch directory")?;
        packages::unpack(&debs, parts.path())?;
        fs::write(parts.path().join("debug.config"), FRAGMENT).context("cannot write a file")?;
        fs::write(parts.path().join("build-debug.sh"), BUILD).context("cannot write a file")?;
        process::run_logged(
            tools
                .sandbox()
                .without_network()
                .read(parts.path(), "/mnt/parts")
                .write(directory, "/mnt/kernel")
                .command("sh")
                .arg("/mnt/parts/build-debug.sh")
                .arg(format!(
                    "/mnt/parts/usr/src/linux-source-{}.tar.xz",
                    kernel.series
                ))
                .arg("/mnt/parts/debug.config")
                .arg("/mnt/kernel"),
            "building the debug kernel",
            &log,
        )
    })
}
