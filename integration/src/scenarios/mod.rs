//! Scenarios: tests that act on the host while a guest runs, and tests of the harness itself.
//!
//! A scenario either starts `cargo vm` as a user would ([`Context::cargo_vm`]) or boots a guest and
//! keeps its handle ([`Context::boot`]).

mod harness;
mod hotplug;
mod measure;
mod outage;
mod sleep;

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use guest_agent::GuestConfig;

use crate::{
    cli::EnvironmentOptions,
    guest::{Bench, GuestSpec},
    interrupt,
    suite::{Outcome, Record},
    vm::Vm,
};

/// A scenario.
pub(crate) struct Scenario {
    /// `MODULE::NAME`.
    pub(crate) name: &'static str,
    run: fn(&Context<'_>) -> Result<()>,
}

/// What scenarios work with.
pub(crate) struct Context<'a> {
    /// Everything that guests are started from.
    bench: &'a Bench,
    options: &'a EnvironmentOptions,
    program: PathBuf,
    number: std::cell::Cell<u32>,
}

/// All scenarios.
pub(crate) fn all() -> Vec<&'static Scenario> {
    [
        harness::SCENARIOS,
        outage::SCENARIOS,
        hotplug::SCENARIOS,
        sleep::SCENARIOS,
        measure::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs `scenarios`; hands each result to `record`.
pub(crate) fn run(
    bench: &Bench,
    options: &EnvironmentOptions,
    scenarios: &[&'static Scenario],
    mut record: impl FnMut(Record),
) -> Result<()> {
    let context = Context {
        bench,
        options,
        program: std::env::current_exe().context("this program has no path")?,
        number: std::cell::Cell::new(0),
    };
    for scenario in scenarios {
        let started = Instant::now();
        let result = (scenario.run)(&context);
        interrupt::check()?;
        record(Record {
            name: scenario.name.to_owned(),
            outcome: match result {
                Ok(()) => Outcome::Passed,
                Err(error) => Outcome::Failed(format!("{error:#}")),
            },
            time: Some(started.elapsed()),
            output: String::new(),
        });
    }
    Ok(())
}

impl Context<'_> {
    /// `cargo vm COMMAND` with the kernel and the accelerator of this run; arguments to follow.
    fn cargo_vm(&self, command: &str) -> Command {
        let mut process = Command::new(&self.program);
        process
            .arg(command)
            .args(["--kernel", &self.options.kernel])
            .args(["--accel", self.bench.accel.name()])
            .env_remove("RUST_BACKTRACE");
        process
    }

    /// Boots a guest with `devices` devices.
    fn boot(&self, devices: u32) -> Result<Vm> {
        self.boot_with(devices, &[])
    }

    /// As [`Context::boot`], with these arguments for each device's backend.
    fn boot_with(&self, devices: u32, device_arguments: &[&str]) -> Result<Vm> {
        self.bench.boot(&self.guest(GuestConfig {
            devices,
            device_arguments: device_arguments.iter().map(|&a| a.to_owned()).collect(),
            ..GuestConfig::default()
        }))
    }

    /// A guest of this configuration.
    fn guest(&self, config: GuestConfig) -> GuestSpec {
        let number = self.number.get();
        self.number.set(number + 1);
        GuestSpec {
            name: format!("scenario-{number}"),
            config,
            ..GuestSpec::default()
        }
    }

    /// Seconds that something in a guest may take, more where the kernel is slow.
    fn seconds(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.bench.patience
    }
}
