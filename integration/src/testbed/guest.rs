//! One guest as it is asked for, and what its kernel is started with.

use std::path::PathBuf;

use guest_agent::GuestConfig;

use crate::host::accel::Accel;

/// One guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestSpec {
    /// Distinguishes the guests of one run.
    pub(crate) name: String,
    /// What programs in the guest can see of it; its packages are one of the sets that the testbed
    /// was provided with.
    pub(crate) config: GuestConfig,
    pub(crate) qemu_arguments: Vec<String>,
    /// Files for the guest: where on the host, where in the guest.
    pub(crate) copies: Vec<(PathBuf, PathBuf)>,
    pub(crate) verbose: bool,
}

/// The kernel's command line.
pub(super) fn kernel_parameters(accel: Accel, more: &[String]) -> String {
    let mut parameters = vec![
        "console=ttyS0",
        // Warnings and worse, which is what splats are made of; a serial line is slow.
        "loglevel=5",
        // An oops is a dead guest; a dead guest ends at once.
        "oops=panic",
        "panic=-1",
        // Marks must not be dropped.
        "printk.devkmsg=on",
        "sysctl.kernel.hung_task_timeout_secs=60",
        "sysctl.kernel.sysrq=1",
    ];
    if accel == Accel::Tcg {
        // On a busy machine an emulated CPU can stand still for long without any fault of its own.
        parameters.extend([
            "sysctl.kernel.watchdog_thresh=60",
            "rcupdate.rcu_cpu_stall_timeout=120",
        ]);
    }
    parameters.extend(more.iter().map(String::as_str));
    parameters.join(" ")
}
