// SPDX-License-Identifier: GPL-2.0

//! `CLOCK_MONOTONIC`.

use kernel::bindings;

/// Nanoseconds since the machine booted. Any context.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    // SAFETY: Reading the clock has no precondition.
    unsafe { bindings::ktime_get() as u64 }
}

/// Seconds since the machine booted, cheaper than [`monotonic_ns`]. Any context.
pub(crate) fn monotonic_seconds() -> u64 {
    // SAFETY: Reading the clock has no precondition.
    unsafe { bindings::ktime_get_seconds() as u64 }
}
