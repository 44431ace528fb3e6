//! The actor for a backend that dies.

use std::{os::unix::fs::FileExt as _, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{io::Errno, process::Signal};

use super::ready::{GONE, say_ready};
use crate::support::{MIB, NODE, PAGE, child::Child, driver, open, program, wait};

/// Transfers data until the backend dies; requests in flight have to end within the driver's
/// time-out.
pub(super) fn load_a_dying_device() -> Result<()> {
    driver::unload()?;
    program::run(&["modprobe", "vdma", "timeout_ms=1500"])?;
    wait::until("the node is there", || Ok(Path::new(NODE).exists()))?;
    let device = open()?;
    let mapping = device.map(0, PAGE)?;
    let workers = (0..4)
        .map(|number| Child::fork(|| transfer_until_failure(number)))
        .collect::<Result<Vec<_>>>()?;
    wait::until("transfers are in flight", || {
        Ok(device.device_statistics()?.completed > 200)
    })?;
    say_ready()?;
    for worker in workers {
        worker.succeed()?;
    }
    // Late requests fail first; then the driver disables the device.
    wait::until("the device is disabled", || {
        let error = device.file().read_at(&mut [0; 10], 0).err();
        Ok(error.and_then(|error| error.raw_os_error()) == Some(Errno::NODEV.raw_os_error()))
    })?;
    let accessor = Child::fork(|| mapping.load::<u32>(0).map(|_| ()).map_err(Into::into))?;
    accessor
        .die_of(Signal::BUS)
        .context("a load from the mapping")
}

fn transfer_until_failure(seed: u64) -> Result<()> {
    let device = open()?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut buffer = vec![0; MIB];
    let deadline = Instant::now() + GONE;
    while Instant::now() < deadline {
        let length = random.usize(1..=MIB);
        let offset = random.u64(0..16 << 20);
        let result = if random.bool() {
            device.file().read_at(&mut buffer[..length], offset)
        } else {
            device.file().write_at(&buffer[..length], offset)
        };
        match result {
            Ok(moved) => ensure!(moved > 0, "no bytes were transferred"),
            Err(error) => {
                let ends = [Errno::NODEV, Errno::IO].map(|errno| Some(errno.raw_os_error()));
                ensure!(ends.contains(&error.raw_os_error()), "a transfer: {error}");
                return Ok(());
            }
        }
    }
    bail!("transfers still succeed without a backend")
}
