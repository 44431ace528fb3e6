//! Kernel trees that out-of-tree modules can be built against.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    host::{cache, cache::Cache, packages::Snapshot, tools::Tools},
    kernel::{
        files,
        files::KernelFiles,
        source,
        source::{PARTS, Recipe},
        stock::StockKernel,
    },
};

/// A kernel tree that modules can be built against.
#[derive(Clone, Debug)]
pub(crate) struct KernelTree {
    pub(crate) directory: PathBuf,
    /// Variables for `make` when modules are built for it.
    pub(crate) make_arguments: Vec<String>,
}

/// The script that prepares the tree, run inside the tools.
const PREPARE: &str = include_str!("../../../ci/kernel/prepare-tree.sh");

impl KernelTree {
    /// Prepares the tree of `kernel` unless it is in the cache.
    pub(crate) fn stock(
        cache: &Cache,
        snapshot: &Snapshot<'_>,
        tools: &Tools,
        kernel: &StockKernel,
        files: &KernelFiles,
    ) -> Result<Self> {
        let key = cache::key([
            PREPARE.as_bytes(),
            kernel.package_version.as_bytes(),
            tools.compilers().as_bytes(),
        ]);
        let name = format!("{}-{key}", kernel.release);
        let directory = cache.entry("kernel-trees", &name, |directory| {
            let config = fs::read(files::config_of(files))
                .context("the kernel image brings no configuration")?;
            let recipe = Recipe {
                what: format!(
                    "preparing the source tree of kernel {} for modules",
                    kernel.version
                ),
                log: format!("kernel-tree-{}.log", kernel.release),
                script: PREPARE,
                packages: vec![kernel.headers.clone()],
                files: vec![("config", config)],
                arguments: vec![
                    format!("{PARTS}/config"),
                    format!(
                        "{PARTS}/usr/src/linux-headers-{}/Module.symvers",
                        kernel.release
                    ),
                    kernel.local_version().to_owned(),
                ],
            };
            source::build(cache, snapshot, tools, kernel, &recipe, directory)
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

    /// Uses the tree `directory`, in which a kernel has been built.
    pub(crate) fn built(directory: &Path) -> Result<Self> {
        let path = directory.join(".config");
        let config = fs::read_to_string(&path)
            .with_context(|| format!("{}: not a kernel tree", path.display()))?;
        let make_arguments = if is_clang(&config) {
            vec!["LLVM=-19".to_owned()]
        } else {
            vec!["CC=gcc-14".to_owned(), "HOSTCC=gcc-14".to_owned()]
        };
        Ok(Self {
            directory: directory.to_owned(),
            make_arguments,
        })
    }

    /// Returns the release, as `uname -r` reports it.
    pub(crate) fn release(&self) -> Result<String> {
        let path = self.directory.join("include/config/kernel.release");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: the tree is not prepared", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Whether modules for this tree are built with clang.
    pub(crate) fn needs_clang(&self) -> bool {
        self.make_arguments
            .iter()
            .any(|argument| argument.starts_with("LLVM"))
    }
}

/// Whether a kernel with this configuration was built with clang.
fn is_clang(config: &str) -> bool {
    config.lines().any(|line| line == "CONFIG_CC_IS_CLANG=y")
}
