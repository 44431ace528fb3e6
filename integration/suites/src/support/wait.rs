//! Waiting for a state of the kernel that nobody announces.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Looks until `holds`; fails when it does not within 20 seconds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds()? {
        if Instant::now() >= deadline {
            bail!("{what}: not within 20 seconds");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until nothing is with the device.
pub(crate) fn until_idle(device: &vdma::Device) -> Result<()> {
    until("the device answers every request", || {
        Ok(device.device_statistics()?.in_flight == 0)
    })
}

/// Waits until something is with the device.
pub(crate) fn until_busy(device: &vdma::Device) -> Result<()> {
    until("a request is with the device", || {
        Ok(device.device_statistics()?.in_flight > 0)
    })
}
