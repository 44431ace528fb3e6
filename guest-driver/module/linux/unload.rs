// SPDX-License-Identifier: GPL-2.0

//! Waiting, when the module is unloaded, for tasks that run its code without a reference to the
//! module: callbacks of the block plug and of the virtio bus.

use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};

use crate::linux::{bindings::vdma_synchronize_rcu_tasks, delay};

/// How many [`ModuleUser`]s there are.
static USERS: Atomic<i32> = Atomic::new(0);

/// Part of an object that a callback holds while it runs. The code of the module stays until this
/// is dropped, and the task that drops it has left the code, unless it sleeps before.
///
/// # Invariants
///
/// [`USERS`] counts this object.
pub(crate) struct ModuleUser(());

impl ModuleUser {
    pub(crate) fn new() -> Self {
        // INVARIANT: Counted here.
        USERS.add(1, Relaxed);
        Self(())
    }
}

impl Drop for ModuleUser {
    fn drop(&mut self) {
        let _ = USERS.fetch_sub(1, Release);
    }
}

/// Waits for all [`ModuleUser`]s when it is dropped, by when no more are made. May sleep then.
pub(crate) struct UnloadGuard(());

impl UnloadGuard {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

impl Drop for UnloadGuard {
    fn drop(&mut self) {
        while USERS.load(Acquire) != 0 {
            delay::sleep_ms(1);
        }
        // A task that dropped the last one may have been preempted before it left the code. This
        // waits until every task has slept, or been in user space.
        // SAFETY: No precondition beyond a context that may sleep.
        unsafe { vdma_synchronize_rcu_tasks() };
    }
}
