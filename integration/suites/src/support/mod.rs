//! What the suites have in common.

pub(crate) mod aio;
pub(crate) mod batch;
pub(crate) mod bytes;
pub(crate) mod cgroup;
pub(crate) mod child;
pub(crate) mod completion;
pub(crate) mod driver;
pub(crate) mod errno;
pub(crate) mod faults;
pub(crate) mod fuse;
pub(crate) mod kernel_log;
pub(crate) mod procfs;
pub(crate) mod program;
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

/// Bytes of a kibibyte.
pub(crate) const KIB: usize = 1 << 10;
/// Bytes of a mebibyte.
pub(crate) const MIB: usize = 1 << 20;

/// Opens the device for reading and writing.
pub(crate) fn open() -> Result<Device> {
    Device::open(NODE).context("cannot open the device")
}

/// Opens the device for reading and writing, with these flags of open(2) as well.
pub(crate) fn open_with_flags(flags: libc::c_int) -> Result<Device> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    Device::open_with(NODE, &options)
        .with_context(|| format!("cannot open the device with flags {flags:#o}"))
}

/// Opens the device with `O_DIRECT`.
pub(crate) fn open_direct() -> Result<Device> {
    open_with_flags(libc::O_DIRECT)
}

/// Drops all privileges of this process; it cannot get them back.
pub(crate) fn drop_privileges() -> Result<()> {
    const UNPRIVILEGED: libc::uid_t = 65534;
    // SAFETY: No memory is involved.
    let result = unsafe { libc::setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED) };
    ensure!(
        result == 0,
        "setresuid: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}
