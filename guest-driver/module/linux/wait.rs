// SPDX-License-Identifier: GPL-2.0

//! Waiting for one event: `struct completion`, with the ways of waiting that the kernel crate's own
//! `Completion` lacks.

use kernel::{bindings, prelude::*, time::msecs_to_jiffies, types::Opaque};

use crate::linux::bindings::{vdma_fatal_signal_pending, vdma_signal_pending};

/// Milliseconds between two checks for signals while a task has task work.
const TASK_WORK_PAUSE_MS: u32 = 10;

/// Whether a signal waits for the current task. Work for the task does not count, unlike in the
/// kernel's own `signal_pending`.
pub(crate) fn signal_pending() -> bool {
    // SAFETY: No precondition.
    unsafe { vdma_signal_pending() }
}

/// Whether a signal that kills waits for the current task.
pub(crate) fn fatal_signal_pending() -> bool {
    // SAFETY: No precondition.
    unsafe { vdma_fatal_signal_pending() }
}

/// `EINTR` when a signal that kills waits for the current task. For loops whose length a user
/// chooses.
pub(crate) fn check_alive() -> Result {
    if fatal_signal_pending() {
        Err(EINTR)
    } else {
        Ok(())
    }
}

/// An event that happens once.
///
/// # Invariants
///
/// `raw` is initialized.
#[pin_data]
pub(crate) struct Completion {
    #[pin]
    raw: Opaque<bindings::completion>,
}

// SAFETY: A completion is made to be shared between tasks and interrupts.
unsafe impl Send for Completion {}
// SAFETY: All functions of a completion take its own lock.
unsafe impl Sync for Completion {}

impl Completion {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: Initialized here.
            // SAFETY: `slot` is valid for writes and pinned.
            raw <- Opaque::ffi_init(|slot| unsafe { bindings::init_completion(slot) }),
        })
    }

    /// Lets every present and future waiter go on. Any context.
    pub(crate) fn complete_all(&self) {
        // SAFETY: The completion was initialized.
        unsafe { bindings::complete_all(self.raw.get()) }
    }

    /// Whether the event has happened.
    pub(crate) fn is_done(&self) -> bool {
        // SAFETY: The completion was initialized.
        unsafe { bindings::completion_done(self.raw.get()) }
    }

    /// Waits whatever happens. May sleep.
    pub(crate) fn wait(&self) {
        // SAFETY: The completion was initialized.
        unsafe { bindings::wait_for_completion(self.raw.get()) }
    }

    /// Waits; a signal that kills ends the wait with `EINTR`. May sleep.
    pub(crate) fn wait_killable(&self) -> Result {
        // SAFETY: The completion was initialized.
        match unsafe { bindings::wait_for_completion_killable(self.raw.get()) } {
            0 => Ok(()),
            _ => Err(EINTR),
        }
    }

    /// Waits; a signal ends the wait with `EINTR`. May sleep.
    pub(crate) fn wait_interruptible(&self) -> Result {
        loop {
            // SAFETY: The completion was initialized.
            if unsafe { bindings::wait_for_completion_interruptible(self.raw.get()) } == 0 {
                return Ok(());
            }
            if signal_pending() {
                return Err(EINTR);
            }
            // Work for the task (`TIF_NOTIFY_SIGNAL`, as io_uring sends it) interrupts as a signal
            // does, and goes on doing so until the task is back in user space, but it is none.
            let pause = msecs_to_jiffies(TASK_WORK_PAUSE_MS);
            // SAFETY: The completion was initialized.
            match unsafe { bindings::wait_for_completion_killable_timeout(self.raw.get(), pause) } {
                1.. => return Ok(()),
                0 => {}
                _ => return Err(EINTR),
            }
        }
    }

    /// Waits for at most this time, or fails with `ETIMEDOUT`. May sleep.
    pub(crate) fn wait_milliseconds(&self, milliseconds: u32) -> Result {
        let jiffies = msecs_to_jiffies(milliseconds);
        // SAFETY: The completion was initialized.
        match unsafe { bindings::wait_for_completion_timeout(self.raw.get(), jiffies) } {
            0 => Err(ETIMEDOUT),
            _ => Ok(()),
        }
    }
}
