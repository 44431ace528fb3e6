// SPDX-License-Identifier: GPL-2.0

//! Counts of what passed through an open file. Relaxed: each is exact, together they are a snapshot
//! only while nothing is in flight.

use crate::protocol::Statistics;
use kernel::sync::atomic::{Atomic, Relaxed};

/// The counts of an open file.
pub(crate) struct Counters {
    submitted: Atomic<u64>,
    completed: Atomic<u64>,
    failed: Atomic<u64>,
    bytes_read: Atomic<u64>,
    bytes_written: Atomic<u64>,
    pages_pinned: Atomic<u64>,
    segments: Atomic<u64>,
    in_flight_max: Atomic<u64>,
    queue_full: Atomic<u64>,
}

/// Direction of the data of a request, seen from the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// No data.
    None,
    /// From device memory to the caller.
    Read,
    /// From the caller to device memory.
    Write,
}

/// Raises `maximum` to `value` if that is more.
fn raise(maximum: &Atomic<u64>, value: u64) {
    let mut seen = maximum.load(Relaxed);
    while seen < value {
        match maximum.cmpxchg(seen, value, Relaxed) {
            Ok(_) => break,
            Err(now) => seen = now,
        }
    }
}

impl Counters {
    pub(crate) fn new() -> Self {
        Self {
            submitted: Atomic::new(0),
            completed: Atomic::new(0),
            failed: Atomic::new(0),
            bytes_read: Atomic::new(0),
            bytes_written: Atomic::new(0),
            pages_pinned: Atomic::new(0),
            segments: Atomic::new(0),
            in_flight_max: Atomic::new(0),
            queue_full: Atomic::new(0),
        }
    }

    /// A request goes to the device with this many pinned pages in this many entries.
    pub(crate) fn submit(&self, pages: usize, segments: usize) {
        let submitted = self.submitted.fetch_add(1, Relaxed) + 1;
        self.pages_pinned.add(pages as u64, Relaxed);
        self.segments.add(segments as u64, Relaxed);
        let in_flight = submitted.saturating_sub(self.completed.load(Relaxed));
        raise(&self.in_flight_max, in_flight);
    }

    /// A request that was counted by [`Counters::submit`] did not go.
    pub(crate) fn retract(&self, pages: usize, segments: usize) {
        let _ = self.submitted.fetch_sub(1, Relaxed);
        let _ = self.pages_pinned.fetch_sub(pages as u64, Relaxed);
        let _ = self.segments.fetch_sub(segments as u64, Relaxed);
    }

    /// A request came back, having moved this many bytes.
    pub(crate) fn complete(&self, direction: Direction, bytes: usize, ok: bool) {
        self.completed.add(1, Relaxed);
        if !ok {
            self.failed.add(1, Relaxed);
        }
        match direction {
            Direction::None => {}
            Direction::Read => self.bytes_read.add(bytes as u64, Relaxed),
            Direction::Write => self.bytes_written.add(bytes as u64, Relaxed),
        }
    }

    /// A request found its queue full.
    pub(crate) fn queue_full(&self) {
        self.queue_full.add(1, Relaxed);
    }

    /// The counts as user space sees them.
    pub(crate) fn snapshot(&self) -> Statistics {
        let completed = self.completed.load(Relaxed);
        let submitted = self.submitted.load(Relaxed);
        Statistics {
            submitted,
            completed,
            failed: self.failed.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            pages_pinned: self.pages_pinned.load(Relaxed),
            segments: self.segments.load(Relaxed),
            in_flight: submitted.saturating_sub(completed),
            in_flight_max: self.in_flight_max.load(Relaxed),
            queue_full: self.queue_full.load(Relaxed),
        }
    }
}
