//! The kernel that `--kernel` selects, and how it is obtained.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{
    failure::RunFailure,
    host::{cache::Cache, packages::Snapshot, tools::Tools},
    kernel::{debug, files::KernelFiles, stock, stock::StockKernel, tree::KernelTree},
};

/// The kernel that `--kernel` selects.
pub(crate) enum Choice<'a> {
    /// A kernel that the mirror offers.
    Stock(&'a StockKernel),
    /// The debug kernel, of the newest version that the mirror offers.
    Debug(&'a StockKernel),
    /// A kernel that the user has built in this tree.
    Built(PathBuf),
}

impl<'a> Choice<'a> {
    pub(crate) fn new(offered: &'a [StockKernel], wanted: &str) -> Result<Self> {
        if wanted.contains('/') {
            let path = std::path::absolute(wanted).context("cannot make a path absolute")?;
            return Ok(Self::Built(path));
        }
        let name = if wanted == "debug" { "stock" } else { wanted };
        let kernel =
            stock::choose(offered, name).map_err(|error| RunFailure::Usage(error.to_string()))?;
        Ok(if wanted == "debug" {
            Self::Debug(kernel)
        } else {
            Self::Stock(kernel)
        })
    }

    /// The kernel's files and, if modules are to be built, its tree.
    pub(crate) fn provide(
        &self,
        cache: &Cache,
        snapshot: &Snapshot<'_>,
        tools: &Tools,
        with_tree: bool,
    ) -> Result<(KernelFiles, Option<KernelTree>)> {
        let built = |path: &Path| -> Result<_> {
            let files = KernelFiles::built(path)?;
            let tree = with_tree.then(|| KernelTree::built(path)).transpose()?;
            Ok((files, tree))
        };
        match self {
            Self::Stock(kernel) => {
                let files = KernelFiles::stock(cache, snapshot, tools, kernel)?;
                let tree = with_tree
                    .then(|| KernelTree::stock(cache, snapshot, tools, kernel, &files))
                    .transpose()?;
                Ok((files, tree))
            }
            Self::Debug(kernel) => {
                let tools = Tools::with_clang(cache, snapshot)?;
                built(&debug::provide(cache, snapshot, &tools, kernel)?)
            }
            Self::Built(path) => {
                built(path).map_err(|error| RunFailure::Usage(format!("{error:#}")).into())
            }
        }
    }

    /// Whether the kernel checks the use of the DMA API (`CONFIG_DMA_API_DEBUG`).
    pub(crate) fn checks_dma(&self) -> bool {
        matches!(self, Self::Debug(_))
    }

    /// Factor on the time that booting and tests may take.
    pub(crate) fn timeout_factor(&self) -> u32 {
        match self {
            Self::Stock(_) => 1,
            // Debugging checks make everything several times slower.
            Self::Debug(_) | Self::Built(_) => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_makes_it_a_path() {
        assert!(matches!(Choice::new(&[], "./linux"), Ok(Choice::Built(_))));
        assert!(Choice::new(&[], "7.3").is_err());
    }
}
