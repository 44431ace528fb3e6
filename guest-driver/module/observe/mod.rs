// SPDX-License-Identifier: GPL-2.0

//! Who hears of a request: the counts of the device and of the file that it came from, the trace, the
//! tracepoints, the eventfd.

pub(crate) mod counters;
pub(crate) mod debugfs;
pub(crate) mod log;
pub(crate) mod trace;

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc, SetOnce,
        atomic::{Atomic, Relaxed},
    },
};

use crate::{
    linux::{
        bindings::{vdma_trace_complete, vdma_trace_submit, vdma_tracing},
        eventfd::EventFd,
        spinlock::{IrqSpinLock, new_irq_spinlock},
    },
    observe::{counters::Counters, trace::TraceRing},
    protocol::{RequestHeader, TraceRecord},
};

/// What is observed of a device.
#[pin_data]
pub(crate) struct DeviceObserver {
    /// The `N` of `/dev/vdmaN`.
    pub(crate) number: u32,
    pub(crate) counters: Counters,
    trace: SetOnce<TraceRing>,
    /// Open files of the trace.
    readers: Atomic<u32>,
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    // SAFETY: Reading the clock has no precondition.
    unsafe { bindings::ktime_get() as u64 }
}

impl DeviceObserver {
    pub(crate) fn new(number: u32) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                number,
                counters: Counters::new(),
                trace: SetOnce::new(),
                readers: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    /// The trace, which is allocated when it is asked for first. May sleep.
    pub(crate) fn trace(&self) -> Result<&TraceRing> {
        if self.trace.as_ref().is_none() {
            // Of two tasks that come here at once, one's is dropped again.
            self.trace.populate(TraceRing::new()?);
        }
        // In the window between another task's `populate` and its end there is none yet.
        self.trace.as_ref().ok_or(EAGAIN)
    }

    /// The trace has one reader more (`true`) or less.
    pub(crate) fn count_reader(&self, come: bool) {
        if come {
            self.readers.add(1, Relaxed);
        } else {
            let _ = self.readers.fetch_sub(1, Relaxed);
        }
    }

    fn is_traced(&self) -> bool {
        self.readers.load(Relaxed) != 0
    }

    /// Whether anybody wants to hear of requests.
    pub(crate) fn is_observed(&self) -> bool {
        // SAFETY: No precondition.
        self.is_traced() || unsafe { vdma_tracing() }
    }

    /// A request goes to the device; returns the time. Any context.
    pub(crate) fn submitted(
        &self,
        queue: u32,
        header: &RequestHeader,
        pages: usize,
        segments: usize,
    ) -> u64 {
        // SAFETY: Numbers only.
        unsafe {
            vdma_trace_submit(
                self.number,
                queue,
                header.operation.get(),
                header.offset.get(),
                header.length.get(),
                pages as u32,
                segments as u32,
            )
        };
        now()
    }

    /// A request that was submitted at the time `since` came back. Any context.
    pub(crate) fn completed(&self, since: u64, mut record: TraceRecord) {
        if since == 0 {
            return;
        }
        record.time = now();
        record.latency = record.time.saturating_sub(since);
        // SAFETY: Numbers only.
        unsafe {
            vdma_trace_complete(
                self.number,
                record.queue.into(),
                record.operation,
                record.offset,
                record.length,
                record.result,
                record.latency,
            )
        }
        if let Some(trace) = self.trace.as_ref().filter(|_| self.is_traced()) {
            trace.append(record);
        }
    }
}

/// What is observed of the requests of an open file, or of the driver itself, and of the device that
/// they go to.
#[pin_data]
pub(crate) struct Observer {
    pub(crate) device: Arc<DeviceObserver>,
    pub(crate) counters: Counters,
    /// Whether there is an eventfd, so that nobody takes the lock for nothing.
    armed: Atomic<u32>,
    #[pin]
    event: IrqSpinLock<Option<EventFd>>,
}

impl Observer {
    pub(crate) fn new(device: Arc<DeviceObserver>) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                device,
                counters: Counters::new(),
                armed: Atomic::new(0),
                event <- new_irq_spinlock!(None, "vdma_event"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Signals `event` whenever something ends, and nothing else any more. May sleep.
    pub(crate) fn set_event(&self, event: Option<EventFd>) {
        let armed = event.is_some().into();
        let old = core::mem::replace(&mut *self.event.lock(), event);
        self.armed.store(armed, Relaxed);
        drop(old);
    }

    /// Counts something, for the device as well.
    pub(crate) fn count(&self, count: impl Fn(&Counters)) {
        count(&self.device.counters);
        count(&self.counters);
    }

    /// Whether anybody is told of the end of transfers.
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Relaxed) != 0
    }

    /// A transfer has ended. Any context.
    pub(crate) fn ended(&self) {
        if self.is_armed() {
            if let Some(event) = &*self.event.lock() {
                event.signal();
            }
        }
    }
}
