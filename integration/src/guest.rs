//! From options to a booted guest: provides everything that a guest needs, then starts it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use guest_agent::{GuestConfig, InitConfig};

use crate::{
    accel::{self, AccelChoice},
    backend::BackendSpec,
    cache::Cache,
    environment::Environment,
    failure::RunFailure,
    guest_image,
    initramfs::{self, Initramfs},
    kernel_choice::Choice,
    kernel_files::KernelFiles,
    module_build::{self, InstalledModule},
    programs::{self, Programs},
    qemu::{Accel, Machine},
    run_dir::RunDir,
    steps::Steps,
    tools::Tools,
    vm::{Vm, VmSpec},
};

/// Environment variable: seconds that a guest may take to come up.
const BOOT_SECONDS: &str = "VDMA_BOOT_SECONDS";

/// Seconds that a guest with a stock kernel may take to come up, unless [`BOOT_SECONDS`] says
/// otherwise.
const DEFAULT_BOOT_SECONDS: u64 = 90;

/// How long the guest that proves KVM may take; a working one needs a second or two.
const PROOF: Duration = Duration::from_secs(15);

/// What the environment is to hold.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) mirror: Option<String>,
    pub(crate) refresh: bool,
    pub(crate) kernel: String,
    /// Sets of packages beside those of every guest; an image is made for each.
    pub(crate) package_sets: Vec<Vec<String>>,
    pub(crate) accel: AccelChoice,
    pub(crate) driver: bool,
    /// The plugin that counts instructions.
    pub(crate) counting_plugin: bool,
}

/// Everything that guests are started from.
pub(crate) struct Bench {
    pub(crate) run: RunDir,
    pub(crate) tools: Tools,
    pub(crate) kernel: KernelFiles,
    /// Root file systems, by the packages beside those of every guest.
    images: BTreeMap<Vec<String>, PathBuf>,
    pub(crate) programs: Programs,
    /// The driver's module and the backend, unless guests are to have neither.
    pub(crate) driver: Option<(InstalledModule, PathBuf)>,
    /// The plugin that counts instructions, if it was wanted.
    counting_plugin: Option<PathBuf>,
    pub(crate) accel: Accel,
    /// By what to multiply the time that booting and tests may take.
    pub(crate) patience: u32,
    /// Have all devices reach memory through the DMA API.
    dma_api: bool,
}

/// One guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestSpec {
    /// Distinguishes the guests of one run.
    pub(crate) name: String,
    /// What programs in the guest can see of it; its packages are one of the sets that the bench
    /// was provided with.
    pub(crate) config: GuestConfig,
    pub(crate) qemu_arguments: Vec<String>,
    /// Files for the guest: where on the host, where in the guest.
    pub(crate) copies: Vec<(PathBuf, PathBuf)>,
    pub(crate) verbose: bool,
}

impl Bench {
    /// Builds whatever is not in the cache; steps that do not need each other run side by side.
    pub(crate) fn provide(cache: &Cache, wanted: &Wanted) -> Result<Self> {
        let workspace = programs::workspace()?;
        // Packages of the host first: cargo needs its linker.
        let environment = Environment::open(cache, wanted.mirror.as_deref(), wanted.refresh)?;
        let snapshot = &environment.snapshot;
        let choice = Choice::new(&environment.record.kernels, &wanted.kernel)?;
        let steps = Steps::default();
        let all = steps.both(
            || {
                let programs = programs::for_guests(&workspace)?;
                let backend = wanted
                    .driver
                    .then(|| programs::backend(&workspace))
                    .transpose()?;
                let plugin = wanted
                    .counting_plugin
                    .then(|| programs::counting_plugin(&workspace))
                    .transpose()?;
                Ok((programs, backend, plugin))
            },
            || {
                let tools = Tools::provide(cache, snapshot)?;
                steps.both(
                    || {
                        let (files, tree) =
                            choice.provide(cache, snapshot, &tools, wanted.driver)?;
                        let module = tree
                            .map(|tree| {
                                let tools = if tree.needs_clang() {
                                    Tools::with_clang(cache, snapshot)?
                                } else {
                                    tools.clone()
                                };
                                module_build::provide(cache, &tools, &tree, &workspace)
                            })
                            .transpose()?;
                        Ok((files, module, tools.clone()))
                    },
                    || {
                        let image = |packages: &Vec<String>| {
                            let path = guest_image::provide(cache, snapshot, &tools, packages)?;
                            Ok((packages.clone(), path))
                        };
                        wanted.package_sets.iter().map(image).collect()
                    },
                )
            },
        );
        let (built, ((kernel, module, tools), images)) = steps.explain(all)?;
        let (programs, backend, counting_plugin) = built;
        let mut bench = Self {
            run: RunDir::create(cache)?,
            tools,
            kernel,
            images,
            programs,
            driver: module.zip(backend),
            counting_plugin,
            accel: Accel::Kvm,
            patience: choice.patience(),
            dma_api: choice.checks_dma(),
        };
        let qemu_version = Tools::qemu_version(snapshot)?;
        bench.accel = accel::decide(wanted.accel, cache, &qemu_version, || bench.proves_kvm())?;
        Ok(bench)
    }

    /// Boots a guest.
    pub(crate) fn boot(&self, spec: &GuestSpec) -> Result<Vm> {
        let seconds = match std::env::var(BOOT_SECONDS) {
            Ok(text) => text.parse().map_err(|_| {
                RunFailure::Usage(format!("{BOOT_SECONDS}={text}: not a number of seconds"))
            })?,
            Err(_) => DEFAULT_BOOT_SECONDS * u64::from(self.patience),
        };
        self.boot_within(spec, Duration::from_secs(seconds))
    }

    /// Whether a guest comes up with KVM.
    fn proves_kvm(&self) -> Result<bool> {
        let spec = GuestSpec {
            name: "kvm-proof".to_owned(),
            config: GuestConfig {
                cpus: 1,
                memory_mib: 512,
                devices: 0,
                packages: self.images.keys().next().cloned().unwrap_or_default(),
                ..GuestConfig::default()
            },
            ..GuestSpec::default()
        };
        match self.boot_within(&spec, PROOF) {
            Ok(_) => Ok(true),
            Err(error) => match error.downcast_ref() {
                Some(RunFailure::Guest(_)) => Ok(false),
                _ => Err(error),
            },
        }
    }

    fn boot_within(&self, spec: &GuestSpec, boot_deadline: Duration) -> Result<Vm> {
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
            // The archive and what is unpacked from it are in the guest's memory at once.
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

/// The kernel's command line.
fn kernel_parameters(accel: Accel, more: &[String]) -> String {
    let mut parameters = vec![
        "console=ttyS0",
        // Warnings and worse, which is what splats are made of; a serial line is slow.
        "loglevel=5",
        // An oops is a dead guest; a dead guest ends at once.
        "oops=panic",
        "panic=-1",
        // Marks must not be dropped.
        "printk.devkmsg=on",
        "sysctl.kernel.hung_task_timeout_secs=60",
        "sysctl.kernel.sysrq=1",
    ];
    if accel == Accel::Tcg {
        // On a busy machine an emulated CPU can stand still for long without any fault of its own.
        parameters.extend([
            "sysctl.kernel.watchdog_thresh=60",
            "rcupdate.rcu_cpu_stall_timeout=120",
        ]);
    }
    parameters.extend(more.iter().map(String::as_str));
    parameters.join(" ")
}
