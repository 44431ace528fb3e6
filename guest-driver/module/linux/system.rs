// SPDX-License-Identifier: GPL-2.0

//! The state of the machine: `system_state`.

use crate::linux::bindings::vdma_system_is_ending;

/// Whether the machine sleeps, or is about to end: devices are being shut down.
pub(crate) fn is_ending() -> bool {
    // SAFETY: No precondition.
    unsafe { vdma_system_is_ending() }
}
