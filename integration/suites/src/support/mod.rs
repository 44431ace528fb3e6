//! What the suites have in common.

pub(crate) mod aio;
pub(crate) mod bytes;
pub(crate) mod child;
pub(crate) mod driver;
pub(crate) mod errno;
pub(crate) mod faults;
pub(crate) mod file_system;
pub(crate) mod kernel_log;
pub(crate) mod pieces;
pub(crate) mod procfs;
pub(crate) mod region;
pub(crate) mod signal;
pub(crate) mod uring;
pub(crate) mod wait;

use std::fs::OpenOptions;

use anyhow::{Context as _, Result, ensure};
use vdma::Device;

/// The device node of guests with one device.
pub(crate) const NODE: &str = "/dev/vdma0";

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Bytes that `K`, `M` stand for.
pub(crate) const KIB: usize = 1 << 10;
/// See [`KIB`].
pub(crate) const MIB: usize = 1 << 20;

/// Opens the device for reading and writing.
pub(crate) fn open() -> Result<Device> {
    Device::open(NODE).context("cannot open the device")
}

/// Opens the device with `O_DIRECT`.
pub(crate) fn open_direct() -> Result<Device> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    Device::open_with(NODE, &options).context("cannot open the device with O_DIRECT")
}

/// Gives up all privileges of this process, for good.
pub(crate) fn become_nobody() -> Result<()> {
    const NOBODY: libc::uid_t = 65534;
    // SAFETY: No memory is involved.
    let result = unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) };
    ensure!(
        result == 0,
        "setresuid: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
