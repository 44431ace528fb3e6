//! The requests between two publications of the used index.

use std::time::Instant;

use vdma_protocol::{Operation, RequestHeader};

use super::request::Completion;
use crate::metrics::{QueueMetrics, nanoseconds};

/// Most requests of a batch, and so for one call.
pub const MAX_BATCH: usize = 32;

/// Data bytes after which a batch ends early, so that finished requests do not wait for long ones.
///
/// A request of that length is a batch of its own, so that requests before it do not wait either.
const BATCH_BYTES: u64 = 256 << 10;

/// Whether a request may take so long that no completion should wait for it: it waits for a disk,
/// frees memory, or is as long as a batch.
pub(super) fn is_long(header: &RequestHeader) -> bool {
    let code = header.operation.get();
    header.length.get() >= BATCH_BYTES
        || code == Operation::Flush.code()
        || code == Operation::Discard.code()
}

/// What a batch has done, for its limits and for the metrics.
pub(super) struct Batch {
    begin: Instant,
    operations: [Option<Operation>; MAX_BATCH],
    count: usize,
    bytes: u64,
    has_long: bool,
}

impl Batch {
    /// An empty batch that begins now.
    pub(super) fn begin() -> Self {
        Self {
            begin: Instant::now(),
            operations: [None; MAX_BATCH],
            count: 0,
            bytes: 0,
            has_long: false,
        }
    }

    /// Whether it is time to publish.
    pub(super) fn is_full(&self) -> bool {
        self.count == MAX_BATCH || self.bytes >= BATCH_BYTES || self.has_long
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the batch after the next request, which takes long.
    pub(super) fn end_after_long(&mut self) {
        self.has_long = true;
    }

    /// Counts an executed request. The batch must not be full.
    pub(super) fn add(&mut self, completion: &Completion) {
        self.operations[self.count] = completion.operation;
        self.count += 1;
        self.bytes += u64::from(completion.transferred);
    }

    /// Adds size and latency to `metrics`. All requests of a batch have the same latency: they are
    /// published together.
    pub(super) fn record(&self, metrics: &QueueMetrics) {
        if self.count == 0 {
            return;
        }
        let time = nanoseconds(self.begin.elapsed());
        metrics.batches.record(self.count as u64, 1);
        for run in self.operations[..self.count].chunk_by(|a, b| a == b) {
            let latency = &metrics.operation(run[0]).latency;
            latency.record(time, run.len() as u64);
        }
    }
}
