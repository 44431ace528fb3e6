//! What a device has done, counted.
//!
//! Each queue's counters are written by its one worker and read by anybody: plain relaxed stores,
//! which cost the hot path next to nothing. They count from the start of the daemon, whichever
//! front ends come and go.

mod prometheus;
mod summary;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use vdma_protocol::{Operation, Status};

pub use self::{prometheus::prometheus_text, summary::summary_lines};
use crate::fault::FaultKind;

/// A count with one writer at a time.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only one thread may do so at a time; the workers of a queue follow each other.
    pub fn add(&self, count: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(count), Ordering::Relaxed);
    }

    /// The count.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 36;

/// Counts values by their magnitude: bucket *n* holds those from 2^(n-1) up to, not including, 2^n;
/// bucket 0 holds zeroes, the last one all that is larger.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| Counter::default()),
            sum: Counter::default(),
        }
    }
}

impl Histogram {
    /// Counts `value`, `times` times.
    pub fn record(&self, value: u64, times: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)].add(times);
        self.sum.add(value.wrapping_mul(times));
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum.get()
    }

    /// How many values each bucket holds.
    #[must_use]
    pub fn counts(&self) -> [u64; BUCKETS] {
        std::array::from_fn(|bucket| self.buckets[bucket].get())
    }

    /// An upper bound for the value that the given share (0 to 1) of all values do not exceed; 0 when
    /// there are none.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // A share of a count: rounding does not matter.
    pub fn quantile(&self, share: f64) -> u64 {
        let counts = self.counts();
        let total: u64 = counts.iter().sum();
        let wanted = ((total as f64) * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return (1u64 << bucket) - 1;
            }
        }
        0
    }
}

/// What became of the requests of one operation.
#[derive(Debug, Default)]
pub struct OperationMetrics {
    /// Requests completed, with whatever status.
    pub requests: Counter,
    /// Those of them that failed.
    pub errors: Counter,
    /// Data bytes that they worked on.
    pub bytes: Counter,
    /// Nanoseconds from the fetch of a request's batch to its publication.
    pub latency: Histogram,
}

/// The counters of one queue.
#[derive(Debug)]
pub struct QueueMetrics {
    operations: [OperationMetrics; Operation::ALL.len()],
    /// Requests that named no operation, or were none.
    pub invalid: OperationMetrics,
    /// Kicks taken.
    pub kicks: Counter,
    /// Calls made.
    pub calls: Counter,
    /// Requests found by polling, without a kick.
    pub poll_hits: Counter,
    /// Requests published at a time.
    pub batches: Histogram,
    /// How often the ring was found corrupt.
    pub ring_errors: Counter,
    faults: [Counter; FaultKind::ALL.len()],
}

impl Default for QueueMetrics {
    fn default() -> Self {
        Self {
            operations: std::array::from_fn(|_| OperationMetrics::default()),
            invalid: OperationMetrics::default(),
            kicks: Counter::default(),
            calls: Counter::default(),
            poll_hits: Counter::default(),
            batches: Histogram::default(),
            ring_errors: Counter::default(),
            faults: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl QueueMetrics {
    /// The counters of an operation, or of what is none.
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

    /// Counts an injected fault.
    pub fn injected(&self, kind: FaultKind) {
        self.faults[kind as usize].add(1);
    }

    /// How many faults of a kind were injected.
    #[must_use]
    pub fn faults(&self, kind: FaultKind) -> u64 {
        self.faults[kind as usize].get()
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &OperationMetrics)> {
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
    /// Counters for this many queues.
    #[must_use]
    pub fn new(queues: u16) -> Self {
        Self {
            queues: (0..queues).map(|_| Arc::default()).collect(),
            front_ends: Counter::default(),
        }
    }

    /// The counters of each queue.
    #[must_use]
    pub fn queues(&self) -> &[Arc<QueueMetrics>] {
        &self.queues
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two() {
        let histogram = Histogram::default();
        for value in [0, 1, 2, 3, 4, 1023, 1024] {
            histogram.record(value, 1);
        }
        histogram.record(u64::MAX, 2);
        let counts = histogram.counts();
        assert_eq!(counts[..4], [1, 1, 2, 1]);
        assert_eq!((counts[10], counts[11], counts[BUCKETS - 1]), (1, 1, 2));
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        histogram.record(100, 90);
        histogram.record(5000, 10);
        assert_eq!(histogram.quantile(0.5), 127);
        assert_eq!(histogram.quantile(0.99), 8191);
        assert_eq!(histogram.sum(), 59_000);
    }
}
