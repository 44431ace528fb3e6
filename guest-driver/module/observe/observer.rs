// SPDX-License-Identifier: GPL-2.0

//! What a request is reported to: the counters of the device and of the file that it came from, the
//! trace, the tracepoints, the eventfd.

use kernel::{
    prelude::*,
    sync::{
        Arc, SetOnce,
        atomic::{Atomic, Relaxed},
    },
};

use crate::{
    linux::{
        clock,
        eventfd::EventFd,
        spinlock::{IrqSpinLock, new_irq_spinlock},
        tracepoints,
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

    /// The trace, which the first call allocates. May sleep.
    pub(crate) fn trace(&self) -> Result<&TraceRing> {
        if self.trace.as_ref().is_none() {
            // When two tasks arrive here at once, the ring of one of them is dropped again.
            self.trace.populate(TraceRing::new()?);
        }
        // In the window between another task's `populate` and its end there is none yet.
        self.trace.as_ref().ok_or(EAGAIN)
    }

    /// Counts a reader of the trace that was made (`true`) or is gone.
    pub(crate) fn count_reader(&self, made: bool) {
        if made {
            self.readers.add(1, Relaxed);
        } else {
            let _ = self.readers.fetch_sub(1, Relaxed);
        }
    }

    fn is_traced(&self) -> bool {
        self.readers.load(Relaxed) != 0
    }

    /// Whether the trace is open or a tracepoint enabled.
    pub(crate) fn is_observed(&self) -> bool {
        self.is_traced() || tracepoints::are_enabled()
    }

    /// A request goes to the device; returns the time. Any context.
    pub(crate) fn submitted(
        &self,
        queue: u32,
        header: &RequestHeader,
        pages: usize,
        segments: usize,
    ) -> u64 {
        let submitted = tracepoints::Submitted {
            device: self.number,
            queue,
            operation: header.operation.get(),
            offset: header.offset.get(),
            length: header.length.get(),
            pages: pages as u32,
            segments: segments as u32,
        };
        submitted.trace();
        clock::monotonic_ns()
    }

    /// A request that was submitted at the time `since` came back. Any context.
    pub(crate) fn completed(&self, since: u64, mut record: TraceRecord) {
        if since == 0 {
            return;
        }
        record.time = clock::monotonic_ns();
        record.latency = record.time.saturating_sub(since);
        let completed = tracepoints::Completed {
            device: self.number,
            queue: record.queue.into(),
            operation: record.operation,
            offset: record.offset,
            length: record.length,
            result: record.result,
            latency: record.latency,
        };
        completed.trace();
        if let Some(trace) = self.trace.as_ref().filter(|_| self.is_traced()) {
            trace.append(record);
        }
    }
}

/// What is observed of the requests of an open file, or of the driver itself, and of the device
/// that they go to.
#[pin_data]
pub(crate) struct Observer {
    pub(crate) device: Arc<DeviceObserver>,
    pub(crate) counters: Counters,
    /// Whether there is an eventfd: without one the lock is not taken.
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
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Has `event` signalled at the end of each transfer, instead of the one before. May sleep.
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

    /// Whether there is an eventfd to signal at the end of transfers.
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
