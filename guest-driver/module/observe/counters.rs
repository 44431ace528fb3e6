// SPDX-License-Identifier: GPL-2.0

//! Counts of what passed through an open file or a device. Each is exact; `completed` is read
//! before `submitted`, and others fit together only while nothing is in flight.

use kernel::sync::atomic::{Acquire, Atomic, Relaxed};

use crate::{protocol::Statistics, with_statistics};

/// Direction in which a request moves device memory, seen from the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The request moves none between caller and device.
    None,
    /// From device memory to the caller.
    Read,
    /// From the caller to device memory.
    Write,
}

/// A count that only grows, or a number of things that come and go.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    pub(crate) fn add(&self, more: usize) {
        // Most are zero for most requests, and a test is cheaper than an atomic addition.
        if more != 0 {
            self.0.add(more as u64, Relaxed);
        }
    }

    pub(crate) fn subtract(&self, less: usize) {
        let _ = self.0.fetch_sub(less as u64, Relaxed);
    }

    fn get(&self) -> u64 {
        // What is read next is no older than this.
        self.0.load(Acquire)
    }

    /// Raises a maximum to `value` if that is more.
    fn raise(&self, value: u64) {
        let mut seen = self.get();
        while seen < value {
            match self.0.cmpxchg(seen, value, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
    }
}

macro_rules! declare_counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counts of an open file, or of a device: one for each of [`Statistics`], though
        /// `in_flight` is not counted, for it follows from others.
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn new() -> Self {
                Self { $($name: Counter(Atomic::new(0)),)* }
            }

            /// The counts as user space sees them.
            pub(crate) fn snapshot(&self) -> Statistics {
                // Read first: what completes meanwhile has not completed before it was submitted.
                let completed = self.completed.get();
                let counts = Statistics { $($name: self.$name.get(),)* };
                Statistics {
                    completed,
                    in_flight: counts.submitted.saturating_sub(completed),
                    ..counts
                }
            }
        }
    };
}
with_statistics!(declare_counters);

/// Pages and scatter-gather entries of a request.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    /// Pages that are pinned for the request.
    pub(crate) pinned: usize,
    /// Scatter-gather entries.
    pub(crate) segments: usize,
    /// Pages that are copied because the device cannot reach them.
    pub(crate) bounced: usize,
}

impl Counters {
    /// Counts a request that is about to be submitted.
    pub(crate) fn submit(&self, extent: Extent) {
        let submitted = self.submitted.0.fetch_add(1, Relaxed) + 1;
        self.pages_pinned.add(extent.pinned);
        self.segments.add(extent.segments);
        self.pages_bounced.add(extent.bounced);
        self.in_flight_max
            .raise(submitted.saturating_sub(self.completed.get()));
    }

    /// Undoes [`Counters::submit`], of a request that was not submitted after all.
    pub(crate) fn unaccount(&self, extent: Extent) {
        self.submitted.subtract(1);
        self.pages_pinned.subtract(extent.pinned);
        self.segments.subtract(extent.segments);
        self.pages_bounced.subtract(extent.bounced);
    }

    /// Counts a completed request that has moved `bytes`.
    pub(crate) fn complete(&self, direction: Direction, bytes: usize, ok: bool) {
        self.completed.add(1);
        if !ok {
            self.failed.add(1);
        }
        self.moved(direction, bytes);
    }

    /// Counts bytes that were moved.
    pub(crate) fn moved(&self, direction: Direction, bytes: usize) {
        match direction {
            Direction::None => {}
            Direction::Read => self.bytes_read.add(bytes),
            Direction::Write => self.bytes_written.add(bytes),
        }
    }
}
