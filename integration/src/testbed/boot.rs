//! The testbed, and booting guests from it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use guest_agent::InitConfig;

use crate::{
    failure::RunFailure,
    host::{accel::Accel, tools::Tools},
    image::{
        initramfs::{self, Initramfs},
        programs::Programs,
    },
    kernel::{files::KernelFiles, module::InstalledModule},
    testbed::guest::{GuestSpec, kernel_parameters},
    vm::{
        backend::BackendSpec,
        qemu::Machine,
        run_dir::RunDir,
        running::{Vm, VmSpec},
    },
};

/// Environment variable with the limit on a guest's boot, in seconds.
const BOOT_SECONDS: &str = "VDMA_BOOT_SECONDS";

/// Limit on the boot of a guest with a stock kernel, unless [`BOOT_SECONDS`] is set.
const DEFAULT_BOOT_SECONDS: u64 = 90;

/// Everything that guests are started from.
pub(crate) struct Testbed {
    pub(crate) run: RunDir,
    pub(crate) tools: Tools,
    pub(crate) kernel: KernelFiles,
    /// Root file systems, by the packages in addition to those of every guest.
    pub(super) images: BTreeMap<Vec<String>, PathBuf>,
    pub(crate) programs: Programs,
    /// The driver's module and the backend, unless guests have neither.
    pub(crate) driver: Option<(InstalledModule, PathBuf)>,
    /// The plugin that counts instructions, if requested.
    pub(super) counting_plugin: Option<PathBuf>,
    pub(crate) accel: Accel,
    /// Factor on the time that booting and tests may take.
    pub(crate) timeout_factor: u32,
    /// All devices reach memory through the DMA API.
    pub(super) dma_api: bool,
}

impl Testbed {
    /// Boots a guest.
    pub(crate) fn boot(&self, spec: &GuestSpec) -> Result<Vm> {
        let seconds = match std::env::var(BOOT_SECONDS) {
            Ok(text) => text.parse().map_err(|_| {
                RunFailure::Usage(format!("{BOOT_SECONDS}={text}: not a number of seconds"))
            })?,
            Err(_) => DEFAULT_BOOT_SECONDS * u64::from(self.timeout_factor),
        };
        self.boot_within(spec, Duration::from_secs(seconds))
    }

    pub(super) fn boot_within(&self, spec: &GuestSpec, boot_deadline: Duration) -> Result<Vm> {
        let config = &spec.config;
        let driver = self.driver.as_ref().filter(|_| config.devices > 0);
        let directory = self.run.path().join(&spec.name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        self.write_initramfs(spec, driver.map(|(module, _)| module), &directory)?;
        let machine = Machine {
            accel: self.accel,
            cpus: config.cpus,
            memory_mib: config.memory_mib,
            kernel: self.kernel.image.clone(),
            root_image: self
                .images
                .get(&config.packages)
                .cloned()
                .with_context(|| format!("there is no image with {:?}", config.packages))?,
            run_directory: directory,
            kernel_parameters: kernel_parameters(self.accel, &config.kernel_parameters),
            devices: Vec::new(),
            counting_plugin: self.counting_plugin.clone(),
            extra: spec.qemu_arguments.clone(),
        };
        let backend = BackendSpec {
            program: driver
                .map(|(_, program)| program.clone())
                .unwrap_or_default(),
            arguments: config.device_arguments.clone(),
            visible_memory: config.visible_memory,
            dma_api: config.dma_api || self.dma_api,
        };
        Vm::boot(
            VmSpec {
                machine,
                backend,
                devices: if driver.is_some() { config.devices } else { 0 },
                boot_deadline,
                verbose: spec.verbose,
                name: spec.name.clone(),
            },
            &self.tools,
            &self.run,
        )
    }

    fn write_initramfs(
        &self,
        spec: &GuestSpec,
        module: Option<&InstalledModule>,
        directory: &Path,
    ) -> Result<()> {
        let root_modules = &self.kernel.root_modules;
        let in_archive = |path: &Path| -> Result<PathBuf> {
            let name = path.file_name().context("a kernel module without a name")?;
            Ok(Path::new("modules").join(name))
        };
        let mut config = InitConfig {
            hostname: "vdma".to_owned(),
            devices: spec.config.devices,
            ..InitConfig::default()
        };
        for path in root_modules {
            config
                .modules
                .push(format!("/{}", in_archive(path)?.display()));
        }
        config.driver = module.map(|module| module.file().display().to_string());
        let mut archive = Initramfs::create(
            &directory.join("initramfs.cpio"),
            &self.programs.agent,
            &config,
        )?;
        for path in root_modules {
            archive.file(path, &in_archive(path)?)?;
        }
        if let Some(module) = module {
            archive.layer(&module.tree(), &Path::new("/").join(module.installed()))?;
        }
        for (program, name) in [
            (&self.programs.suites, "guest-suites"),
            (&self.programs.demo, "vdma-demo"),
            (&self.programs.tool, "vdma"),
        ] {
            archive.layer(program, &Path::new("/usr/local/bin").join(name))?;
        }
        let mut bytes = 0;
        for (from, to) in &spec.copies {
            bytes += initramfs::size_of(from)?;
            // The guest's memory holds the archive and its unpacked content at the same time.
            if 2 * (bytes >> 20) > spec.config.memory_mib * 8 / 10 {
                return Err(RunFailure::Usage(format!(
                    "{} MiB of files do not fit into a guest with {} MiB of memory; use --memory",
                    bytes >> 20,
                    spec.config.memory_mib
                ))
                .into());
            }
            archive.layer(from, to)?;
        }
        archive.finish()?;
        Ok(())
    }
}
