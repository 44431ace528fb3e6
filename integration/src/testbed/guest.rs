//! The specification of one guest, and its kernel's command line.

use std::path::PathBuf;

use guest_agent::GuestConfig;

use crate::host::accel::Accel;

/// One guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestSpec {
    /// Distinguishes the guests of one run.
    pub(crate) name: String,
    /// Its properties for programs in it; the packages are one of the sets of the testbed.
    pub(crate) config: GuestConfig,
    pub(crate) qemu_arguments: Vec<String>,
    /// Files for the guest: path on the host, path in the guest.
    pub(crate) copies: Vec<(PathBuf, PathBuf)>,
    pub(crate) verbose: bool,
}

/// The kernel's command line.
pub(super) fn kernel_parameters(accel: Accel, more: &[String]) -> String {
    let mut parameters = vec![
        "console=ttyS0",
        // Splats are warnings or worse; the serial line is too slow for more.
        "loglevel=5",
        // A guest with an oops counts as dead, and ends at once.
        "oops=panic",
        "panic=-1",
        // Marks must not be rate-limited.
        "printk.devkmsg=on",
        "sysctl.kernel.hung_task_timeout_secs=60",
        "sysctl.kernel.sysrq=1",
    ];
    if accel == Accel::Tcg {
        // On a busy host an emulated CPU may not run for a long time.
        parameters.extend([
            "sysctl.kernel.watchdog_thresh=60",
            "rcupdate.rcu_cpu_stall_timeout=120",
        ]);
    }
    parameters.extend(more.iter().map(String::as_str));
    parameters.join(" ")
}
