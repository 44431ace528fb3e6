// SPDX-License-Identifier: GPL-2.0

//! The driver's tracepoints, `vdma:vdma_submit` and `vdma:vdma_complete`, which
//! `observe/tracepoints.h` declares.

use crate::linux::bindings::{vdma_trace_complete, vdma_trace_submit, vdma_tracing};

/// Whether one of the tracepoints is enabled.
#[inline]
pub(crate) fn are_enabled() -> bool {
    // SAFETY: No precondition: this reads static keys.
    unsafe { vdma_tracing() }
}

/// A request that goes to the device.
pub(crate) struct Submitted {
    pub(crate) device: u32,
    pub(crate) queue: u32,
    pub(crate) operation: u16,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) pages: u32,
    pub(crate) segments: u32,
}

impl Submitted {
    /// Fires `vdma_submit`. Any context.
    pub(crate) fn trace(&self) {
        // SAFETY: The arguments are numbers.
        unsafe {
            vdma_trace_submit(
                self.device,
                self.queue,
                self.operation,
                self.offset,
                self.length,
                self.pages,
                self.segments,
            )
        }
    }
}

/// A request that has come back from the device.
pub(crate) struct Completed {
    pub(crate) device: u32,
    pub(crate) queue: u32,
    pub(crate) operation: u16,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) result: i32,
    /// Nanoseconds since the submission.
    pub(crate) latency: u64,
}

impl Completed {
    /// Fires `vdma_complete`. Any context.
    pub(crate) fn trace(&self) {
        // SAFETY: The arguments are numbers.
        unsafe {
            vdma_trace_complete(
                self.device,
                self.queue,
                self.operation,
                self.offset,
                self.length,
                self.result,
                self.latency,
            )
        }
    }
}
