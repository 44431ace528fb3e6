//! The counters of a device, its queues and their operations.

use std::{sync::Arc, time::Duration};

use vdma_protocol::{Operation, Status};

use super::instruments::{Counter, Histogram};

/// The counters of one operation.
#[derive(Debug, Default)]
pub struct OperationMetrics {
    /// Requests completed, with any status.
    pub requests: Counter,
    /// Requests completed with an error.
    pub errors: Counter,
    /// Data bytes processed.
    pub bytes: Counter,
    /// Nanoseconds from the beginning of a request's batch to its publication.
    pub latency: Histogram,
}

/// The counters of one queue.
#[derive(Debug, Default)]
pub struct QueueMetrics {
    operations: [OperationMetrics; Operation::ALL.len()],
    /// Requests without a valid operation or header.
    pub invalid: OperationMetrics,
    /// Kicks received.
    pub kicks: Counter,
    /// Calls sent to the driver.
    pub calls: Counter,
    /// Requests found by busy-polling, without a kick.
    pub poll_hits: Counter,
    /// Requests published at a time.
    pub batches: Histogram,
    /// Passes that ended with an error which stopped the queue.
    pub ring_errors: Counter,
    /// Faults injected, by kind.
    faults: Vec<(&'static str, Counter)>,
}

impl QueueMetrics {
    fn new(fault_kinds: &[&'static str]) -> Self {
        Self {
            faults: fault_kinds
                .iter()
                .map(|kind| (*kind, Counter::default()))
                .collect(),
            ..Self::default()
        }
    }

    /// The counters of an operation, or of invalid requests for `None`.
    #[must_use]
    pub fn operation(&self, operation: Option<Operation>) -> &OperationMetrics {
        operation.map_or(&self.invalid, |operation| {
            &self.operations[usize::from(operation.code())]
        })
    }

    /// Counts a request.
    pub fn completed(&self, operation: Option<Operation>, status: Status, bytes: u32) {
        let counters = self.operation(operation);
        counters.requests.add(1);
        counters.bytes.add(u64::from(bytes));
        if status != Status::OK {
            counters.errors.add(1);
        }
    }

    /// Counts a fault of the kind with this index.
    pub fn fault_injected(&self, kind: usize) {
        if let Some((_, count)) = self.faults.get(kind) {
            count.add(1);
        }
    }

    /// The number of faults injected of each kind.
    pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.faults.iter().map(|(kind, count)| (*kind, count.get()))
    }

    /// The counters of each operation that was requested, by name.
    pub(super) fn by_operation(&self) -> impl Iterator<Item = (&'static str, &OperationMetrics)> {
        Operation::ALL
            .iter()
            .zip(&self.operations)
            .map(|(operation, counters)| (operation.name(), counters))
            .chain(std::iter::once(("invalid", &self.invalid)))
            .filter(|(_, counters)| counters.requests.get() > 0)
    }
}

/// Nanoseconds of a duration, for a histogram.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The counters of one device.
#[derive(Debug)]
pub struct DeviceMetrics {
    queues: Vec<Arc<QueueMetrics>>,
    /// Front ends that have connected.
    pub front_ends: Counter,
}

impl DeviceMetrics {
    /// Counters for this number of queues and these kinds of faults.
    #[must_use]
    pub fn new(queues: u16, fault_kinds: &[&'static str]) -> Self {
        Self {
            queues: (0..queues)
                .map(|_| Arc::new(QueueMetrics::new(fault_kinds)))
                .collect(),
            front_ends: Counter::default(),
        }
    }

    /// The counters of each queue.
    #[must_use]
    pub fn queues(&self) -> &[Arc<QueueMetrics>] {
        &self.queues
    }
}
