//! Builds or fetches everything that guests are started from.

use std::time::Duration;

use anyhow::Result;
use guest_agent::GuestConfig;

use super::{boot::Testbed, environment::Environment, guest::GuestSpec};
use crate::{
    failure::RunFailure,
    host::{
        accel::{self, Accel, AccelChoice},
        cache::Cache,
        cargo,
        parallel::Steps,
        tools::Tools,
    },
    image::{programs, root},
    kernel::{choice::Choice, module},
    vm::run_dir::RunDir,
};

/// Limit on the boot of the guest that tests KVM; it takes a second or two where KVM works.
const KVM_TEST: Duration = Duration::from_secs(15);

/// What a testbed is to contain.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) mirror: Option<String>,
    pub(crate) refresh: bool,
    pub(crate) kernel: String,
    /// Sets of packages in addition to those of every guest; each set gets an image.
    pub(crate) package_sets: Vec<Vec<String>>,
    pub(crate) accel: AccelChoice,
    pub(crate) driver: bool,
    /// The plugin that counts instructions.
    pub(crate) counting_plugin: bool,
}

impl Testbed {
    /// Builds whatever is not in the cache; independent steps run in parallel.
    pub(crate) fn provide(cache: &Cache, wanted: &Wanted) -> Result<Self> {
        let workspace = cargo::workspace()?;
        // This installs the host's packages, among them the linker that cargo needs below.
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
                                module::provide(cache, &tools, &tree, &workspace)
                            })
                            .transpose()?;
                        Ok((files, module, tools.clone()))
                    },
                    || {
                        let image = |packages: &Vec<String>| {
                            let path = root::provide(cache, snapshot, &tools, packages)?;
                            Ok((packages.clone(), path))
                        };
                        wanted.package_sets.iter().map(image).collect()
                    },
                )
            },
        );
        let (built, ((kernel, module, tools), images)) = steps.explain(all)?;
        let (programs, backend, counting_plugin) = built;
        let mut testbed = Self {
            run: RunDir::create(cache)?,
            tools,
            kernel,
            images,
            programs,
            driver: module.zip(backend),
            counting_plugin,
            accel: Accel::Kvm,
            timeout_factor: choice.timeout_factor(),
            dma_api: choice.checks_dma(),
        };
        let qemu_version = Tools::qemu_version(snapshot)?;
        testbed.accel = accel::decide(wanted.accel, cache, &qemu_version, || {
            testbed.boots_with_kvm()
        })?;
        Ok(testbed)
    }

    /// Tests whether a guest boots with KVM.
    fn boots_with_kvm(&self) -> Result<bool> {
        let spec = GuestSpec {
            name: "kvm-test".to_owned(),
            config: GuestConfig {
                cpus: 1,
                memory_mib: 512,
                devices: 0,
                packages: self.images.keys().next().cloned().unwrap_or_default(),
                ..GuestConfig::default()
            },
            ..GuestSpec::default()
        };
        match self.boot_within(&spec, KVM_TEST) {
            Ok(_) => Ok(true),
            Err(error) => match error.downcast_ref() {
                Some(RunFailure::Guest(_)) => Ok(false),
                _ => Err(error),
            },
        }
    }
}
