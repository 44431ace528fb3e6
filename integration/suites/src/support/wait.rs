//! Waiting for a state of the kernel that no event announces.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Polls until `holds` is true; fails when that takes more than 20 seconds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds()? {
        if Instant::now() >= deadline {
            bail!("not within 20 seconds: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until no request is in flight.
pub(crate) fn until_idle(device: &vdma::Device) -> Result<()> {
    until("every request completes", || {
        Ok(device.device_statistics()?.in_flight == 0)
    })
}

/// Waits until a request is in flight.
pub(crate) fn until_busy(device: &vdma::Device) -> Result<()> {
    until("a request is in flight", || {
        Ok(device.device_statistics()?.in_flight > 0)
    })
}
