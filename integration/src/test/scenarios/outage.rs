//! Backends and QEMU that die while a guest runs.

use anyhow::{Context as _, Result, bail, ensure};
use guest_agent::Command;
use rustix::process::Signal;

use super::{context::Context, registry::scenario};
use crate::{
    failure::{GuestDeath, GuestFailure, RunFailure},
    vm::{command_io::Collected, running::Vm},
};

scenario!(a_killed_backend_ends_the_run);
fn a_killed_backend_ends_the_run(context: &Context<'_>) -> Result<()> {
    let mut vm = context.boot(1)?;
    vm.backend(0)?.process.signal(Signal::KILL);
    match death_of(&mut vm)? {
        GuestFailure::BackendEnded {
            device: 0, status, ..
        } => {
            ensure!(status == "killed by signal 9", "{status}");
            Ok(())
        }
        other => bail!("another failure: {other}"),
    }
}

scenario!(a_killed_qemu_ends_the_run);
fn a_killed_qemu_ends_the_run(context: &Context<'_>) -> Result<()> {
    let mut vm = context.boot(0)?;
    vm.qemu().signal(Signal::KILL);
    match death_of(&mut vm)? {
        GuestFailure::QemuEnded { .. } => Ok(()),
        other => bail!("another failure: {other}"),
    }
}

/// Runs a command that would never end, and returns why the guest died.
fn death_of(vm: &mut Vm) -> Result<GuestFailure> {
    let command = Command {
        arguments: vec!["sleep".to_owned(), "1000".to_owned()],
        ..Command::default()
    };
    match vm.run(command, None, &mut Collected::default()) {
        Ok(end) => bail!("the run continued: {end:?}"),
        Err(error) => match error.downcast::<RunFailure>() {
            Ok(RunFailure::Guest(GuestDeath { failure, .. })) => Ok(failure),
            Ok(other) => bail!("another failure: {other}"),
            Err(error) => Err(error).context("not a failure of the guest"),
        },
    }
}
