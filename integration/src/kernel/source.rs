//! Kernel trees built from Debian's source package, by a script that runs in the sandbox.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    host::{
        cache::Cache,
        packages,
        packages::{Package, Snapshot},
        process, progress,
        tools::Tools,
    },
    kernel::stock::StockKernel,
};

/// Directory of the script, the unpacked packages and the files, inside the sandbox.
pub(crate) const PARTS: &str = "/mnt/parts";

/// Directory of the tree, inside the sandbox.
const TREE: &str = "/mnt/kernel";

/// How a tree is built from a kernel's sources.
pub(crate) struct Recipe<'a> {
    /// Description of the step, for the user.
    pub(crate) what: String,
    /// Name of the log.
    pub(crate) log: String,
    /// The script; its arguments are the source tarball, `arguments` and the tree's directory.
    pub(crate) script: &'a str,
    /// Further packages that it needs, unpacked in [`PARTS`].
    pub(crate) packages: Vec<Package>,
    /// Files that it needs: names in [`PARTS`], and contents.
    pub(crate) files: Vec<(&'a str, Vec<u8>)>,
    /// Arguments of the script.
    pub(crate) arguments: Vec<String>,
}

/// Builds the tree of `kernel` in `directory`.
pub(crate) fn build(
    cache: &Cache,
    snapshot: &Snapshot<'_>,
    tools: &Tools,
    kernel: &StockKernel,
    recipe: &Recipe<'_>,
    directory: &Path,
) -> Result<()> {
    let mut wanted = vec![kernel.source.clone()];
    wanted.extend(recipe.packages.iter().cloned());
    let debs = snapshot.download(&wanted)?;
    let _step = progress::step(recipe.what.clone());
    let parts = tempfile::tempdir_in(cache.directory("scratch")?)
        .context("cannot create a scratch directory")?;
    packages::unpack(&debs, parts.path())?;
    let script = [("script", recipe.script.as_bytes())];
    let files = recipe
        .files
        .iter()
        .map(|(name, content)| (*name, content.as_slice()));
    for (name, content) in files.chain(script) {
        fs::write(parts.path().join(name), content)
            .with_context(|| format!("cannot write {name}"))?;
    }
    process::run_logged(
        tools
            .sandbox()
            .without_network()
            .read(parts.path(), PARTS)
            .write(directory, TREE)
            .command("sh")
            .arg(format!("{PARTS}/script"))
            .arg(format!(
                "{PARTS}/usr/src/linux-source-{}.tar.xz",
                kernel.series
            ))
            .args(&recipe.arguments)
            .arg(TREE),
        &recipe.what,
        &cache.directory("logs")?.join(&recipe.log),
    )
}
