// SPDX-License-Identifier: GPL-2.0

//! Sleeping for a time.

use kernel::bindings;

/// Sleeps for at least this time, whatever signals arrive.
pub(crate) fn sleep_ms(milliseconds: u32) {
    // SAFETY: No precondition beyond a context that may sleep; in another one the kernel complains.
    unsafe { bindings::msleep(milliseconds) }
}
