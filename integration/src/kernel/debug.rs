//! The debug kernel: KASAN, lockdep, kmemleak and fault injection, built from Debian's sources.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    host::{cache, cache::Cache, packages::Snapshot, progress, tools::Tools},
    kernel::{
        source,
        source::{PARTS, Recipe},
        stock::StockKernel,
    },
};

/// The configuration fragment.
const FRAGMENT: &str = include_str!("../../../ci/kernel/debug.config");

/// The build script, run inside the tools.
const BUILD: &str = include_str!("../../../ci/kernel/build-debug.sh");

/// The tree in which the debug kernel of `kernel`'s version is built, unless it is in the cache.
///
/// `tools` must contain clang.
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
        let recipe = Recipe {
            what: format!("building the debug kernel {}", kernel.version),
            log: format!("kernel-debug-{}.log", kernel.version),
            script: BUILD,
            packages: Vec::new(),
            files: vec![("debug.config", FRAGMENT.as_bytes().to_vec())],
            arguments: vec![format!("{PARTS}/debug.config")],
        };
        progress::say(&format!(
            "vdma: building the debug kernel takes about ten minutes, once; its log is {}",
            cache.directory("logs")?.join(&recipe.log).display()
        ));
        source::build(cache, snapshot, tools, kernel, &recipe, directory)
    })
}
