// SPDX-License-Identifier: GPL-2.0

//! Busy-polling for a completion instead of sleeping until the interrupt: faster when the
//! completion comes soon, a waste of CPU time when it does not.

use kernel::sync::atomic::{Atomic, Relaxed};

use crate::{
    io::{
        queue::{BusyPollGuard, Queue},
        transfer::Transfer,
    },
    linux::{clock, cpu, wait::signal_pending},
};

/// Most polls that are skipped after one that was too short: a device that is always slower than
/// the poll budget costs a task less than a sixteenth of its time.
const MAX_SKIP: u32 = 16;

/// Bytes that any device worth polling copies in a nanosecond: the time that they take is added to
/// the poll budget.
const BYTES_PER_NS: u64 = 4;

/// Most bytes that add to the poll budget: where copying takes longer, one interrupt is nothing.
const MAX_BYTES: u64 = 1 << 20;

/// How long a task busy-polls.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Budget {
    /// For the time of the parameter `poll_us`, and only while that has led to completions lately.
    Adaptive,
    /// Until the completion or a signal comes: `RWF_HIPRI`.
    Unlimited,
}

/// The adaptive poll budget of a device.
pub(crate) struct BusyPoll {
    /// Nanoseconds that a poll may take, beside the time for the copying.
    limit: u64,
    /// Polls that are still to be skipped.
    skip: Atomic<u32>,
    /// Polls that were skipped the last time.
    penalty: Atomic<u32>,
}

impl BusyPoll {
    /// Polls for up to `microseconds`; 0 for no adaptive polling.
    pub(crate) fn new(microseconds: u32) -> Self {
        Self {
            limit: u64::from(microseconds) * 1000,
            skip: Atomic::new(0),
            penalty: Atomic::new(0),
        }
    }

    /// Starts to busy-poll `queue`, right before a request is submitted to it, so that the device
    /// need not interrupt; `None` if the budget is spent.
    pub(crate) fn start<'a>(&self, queue: &'a Queue, budget: Budget) -> Option<BusyPollGuard<'a>> {
        let polls = budget == Budget::Unlimited || self.limit > 0 && !self.skips();
        polls.then(|| queue.start_busy_poll())
    }

    /// Calls `poll` until `transfer`, of `bytes` bytes, has completed, a signal comes or the budget
    /// is spent. Returns the sum of what `poll` returned. May sleep a little.
    pub(crate) fn run(
        &self,
        transfer: &Transfer,
        bytes: u64,
        budget: Budget,
        _guard: BusyPollGuard<'_>,
        poll: impl Fn() -> usize,
    ) -> usize {
        let end = clock::monotonic_ns() + self.limit + bytes.min(MAX_BYTES) / BYTES_PER_NS;
        let mut completions = 0;
        loop {
            completions += poll();
            if transfer.is_done() {
                self.penalty.store(0, Relaxed);
                return completions;
            }
            let spent = budget == Budget::Adaptive && clock::monotonic_ns() >= end;
            if signal_pending() || spent {
                break;
            }
            cpu::relax();
            cpu::cond_resched();
        }
        if budget == Budget::Adaptive {
            // Races only blur how many are skipped.
            let penalty = (self.penalty.load(Relaxed) * 2).clamp(1, MAX_SKIP);
            self.penalty.store(penalty, Relaxed);
            self.skip.store(penalty, Relaxed);
        }
        completions
    }

    fn skips(&self) -> bool {
        let left = self.skip.load(Relaxed);
        if left > 0 {
            self.skip.store(left - 1, Relaxed);
        }
        left > 0
    }
}
