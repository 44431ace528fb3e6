//! What scenarios work with.

use std::{
    cell::Cell,
    path::PathBuf,
    process::{self, Command},
    time::Duration,
};

use anyhow::Result;
use guest_agent::GuestConfig;

use crate::{
    testbed::{boot::Testbed, guest::GuestSpec},
    vm::running::Vm,
};

/// What scenarios work with.
pub(crate) struct Context<'a> {
    pub(super) testbed: &'a Testbed,
    /// The argument of `--kernel`.
    pub(super) kernel: &'a str,
    /// Path of this program, which is `cargo vm`. It names the running program itself, for building
    /// the workspace's tests may have replaced the file that it was started from.
    pub(super) program: PathBuf,
    guests: Cell<u32>,
}

impl<'a> Context<'a> {
    /// Creates the context of one run.
    pub(super) fn new(testbed: &'a Testbed, kernel: &'a str) -> Self {
        Self {
            testbed,
            kernel,
            program: format!("/proc/{}/exe", process::id()).into(),
            guests: Cell::new(0),
        }
    }

    /// Returns `cargo vm COMMAND` with this run's kernel and accelerator; the caller adds
    /// arguments.
    pub(super) fn cargo_vm(&self, command: &str) -> Command {
        let mut process = Command::new(&self.program);
        process
            .arg(command)
            .args(["--kernel", self.kernel])
            .args(["--accel", self.testbed.accel.name()])
            .env_remove("RUST_BACKTRACE");
        process
    }

    /// Boots a guest with `devices` devices.
    pub(super) fn boot(&self, devices: u32) -> Result<Vm> {
        self.boot_with(devices, &[])
    }

    /// As [`Context::boot`], with these arguments for each device's backend.
    pub(super) fn boot_with(&self, devices: u32, device_arguments: &[&str]) -> Result<Vm> {
        self.testbed.boot(&self.guest(GuestConfig {
            devices,
            device_arguments: device_arguments.iter().map(|&a| a.to_owned()).collect(),
            ..GuestConfig::default()
        }))
    }

    /// Specifies a guest of this configuration.
    pub(super) fn guest(&self, config: GuestConfig) -> GuestSpec {
        let number = self.guests.get();
        self.guests.set(number + 1);
        GuestSpec {
            name: format!("scenario-{number}"),
            config,
            ..GuestSpec::default()
        }
    }

    /// Returns a time limit for something in a guest, longer with a slow kernel.
    pub(super) fn seconds(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * self.testbed.timeout_factor
    }
}
