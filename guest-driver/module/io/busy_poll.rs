// SPDX-License-Identifier: GPL-2.0

//! Looking for a completion instead of sleeping until the interrupt: faster when it comes soon, a waste
//! when it does not.

use kernel::sync::atomic::{Atomic, Relaxed};

use crate::{
    io::{
        queue::{Looking, Queue},
        transfer::Transfer,
    },
    linux::{clock, cpu, wait::signal_pending},
};

/// Looks that are skipped after each that was in vain, at the most: a device that is always slower than
/// a look is long costs a task less than a sixteenth of its time.
const MAX_SKIP: u32 = 16;

/// Bytes that any device worth looking at copies in a nanosecond: the time that they take is no sign of
/// slowness.
const BYTES_PER_NS: u64 = 4;

/// Bytes for whose copying a look goes on: where it takes longer, one interrupt is nothing.
const MAX_BYTES: u64 = 1 << 20;

/// How long looking has paid lately.
pub(crate) struct Patience {
    /// Nanoseconds that a look may take, beside the time for the copying.
    limit: u64,
    /// Looks to be skipped, and how many there were of the last time.
    skip: Atomic<u32>,
    penalty: Atomic<u32>,
}

impl Patience {
    /// `microseconds` at the most; 0 for no looking.
    pub(crate) fn new(microseconds: u32) -> Self {
        Self {
            limit: u64::from(microseconds) * 1000,
            skip: Atomic::new(0),
            penalty: Atomic::new(0),
        }
    }

    /// Begins to look at `queue`, right before something is submitted to it, so that no interrupt is asked
    /// for: always if `eager`, otherwise if it may pay.
    pub(crate) fn begin<'a>(&self, queue: &'a Queue, eager: bool) -> Option<Looking<'a>> {
        let looks = eager || self.limit > 0 && !self.skips();
        looks.then(|| queue.begin_looking())
    }

    /// Looks with `look` until `transfer`, of so many `bytes`, has ended, or a signal comes; unless `eager`
    /// no longer than the limit. Returns what `look` has found. May sleep a little.
    pub(crate) fn look_for(
        &self,
        transfer: &Transfer,
        bytes: u64,
        eager: bool,
        _looking: Looking<'_>,
        look: impl Fn() -> usize,
    ) -> usize {
        let end = clock::monotonic_ns() + self.limit + bytes.min(MAX_BYTES) / BYTES_PER_NS;
        let mut found = 0;
        loop {
            found += look();
            if transfer.is_done() {
                self.penalty.store(0, Relaxed);
                return found;
            }
            if signal_pending() || !eager && clock::monotonic_ns() >= end {
                break;
            }
            cpu::relax();
            cpu::cond_resched();
        }
        if !eager {
            // Races only blur how many are skipped.
            let penalty = (self.penalty.load(Relaxed) * 2).clamp(1, MAX_SKIP);
            self.penalty.store(penalty, Relaxed);
            self.skip.store(penalty, Relaxed);
        }
        found
    }

    fn skips(&self) -> bool {
        let left = self.skip.load(Relaxed);
        if left > 0 {
            self.skip.store(left - 1, Relaxed);
        }
        left > 0
    }
}
