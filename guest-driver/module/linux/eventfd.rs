// SPDX-License-Identifier: GPL-2.0

//! Event counters of user space: `struct eventfd_ctx`.

use core::ptr::NonNull;

use kernel::{bindings, error::from_err_ptr, prelude::*};

/// A counted reference to the counter behind an eventfd.
///
/// # Invariants
///
/// The reference is counted for this object.
pub(crate) struct EventFd(NonNull<bindings::eventfd_ctx>);

// SAFETY: Event counters are shared between tasks and interrupts, and their count is atomic.
unsafe impl Send for EventFd {}

impl EventFd {
    /// The counter behind a file descriptor of the current task: `EBADF`, or `EINVAL` if it is
    /// something else. May sleep.
    pub(crate) fn from_descriptor(descriptor: u32) -> Result<Self> {
        let descriptor = i32::try_from(descriptor).map_err(|_| EBADF)?;
        // SAFETY: Any number may be passed.
        let context = from_err_ptr(unsafe { bindings::eventfd_ctx_fdget(descriptor) })?;
        // INVARIANT: The function has taken a reference.
        NonNull::new(context).map(Self).ok_or(EBADF)
    }

    /// Adds one. Any context.
    pub(crate) fn signal(&self) {
        // SAFETY: This object holds a reference.
        unsafe { bindings::eventfd_signal_mask(self.0.as_ptr(), 0) }
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: This object holds a reference, and ends here.
        unsafe { bindings::eventfd_ctx_put(self.0.as_ptr()) }
    }
}
