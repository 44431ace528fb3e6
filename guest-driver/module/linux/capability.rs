// SPDX-License-Identifier: GPL-2.0

//! What the current task is allowed to do.

use kernel::{bindings, prelude::*};

/// `EPERM` unless the current task has `CAP_SYS_ADMIN`.
pub(crate) fn require_sys_admin() -> Result {
    // SAFETY: No precondition: the credentials of the current task are always there.
    if unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) } {
        Ok(())
    } else {
        Err(EPERM)
    }
}

/// Whether `RLIMIT_MEMLOCK` does not bind the current task: it has `CAP_IPC_LOCK`.
pub(crate) fn may_lock_memory() -> bool {
    // SAFETY: No precondition: the credentials of the current task are always there.
    unsafe { bindings::capable(bindings::CAP_IPC_LOCK as i32) }
}
