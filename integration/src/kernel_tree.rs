//! Kernel trees that out-of-tree modules can be built against.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{self, Cache};
use crate::kernel::StockKernel;
use crate::kernel_files::{self, KernelFiles};
use crate::packages::{self, Snapshot};
use crate::tools::Tools;
use crate::{process, progress};

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
            let debs = snapshot.download(&[kernel.source.clone(), kernel.headers.clone()])?;
            let _step = progress::step(format!(
                "preparing the source tree of kernel {} for modules",
                kernel.version
            ));
            let parts = tempfile::tempdir_in(cache.directory("scratch")?)
                .context("cannot create a scratch directory")?;
            packages::unpack(&debs, parts.path())?;
            fs::copy(kernel_files::config_of(files), parts.path().join("config"))
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

    /// The tree in which a kernel has been built, at `directory`.
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

    /// What `uname -r` says in a guest with this kernel.
    pub(crate) fn release(&self) -> Result<String> {
        let path = self.directory.join("include/config/kernel.release");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: the tree is not prepared", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Whether building for this tree takes clang.
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
