//! How long to busy-poll an idle ring before sleeping.
//!
//! Polling costs a CPU; sleeping costs the driver a kick and both sides a wake-up. So a ring is
//! polled for a while after its last request, but only as long as that pays: each fruitless period
//! halves the poll budget, down to zero, and a kick soon after falling asleep restores it. An idle
//! ring is polled once, and then costs nothing.

use std::time::{Duration, Instant};

/// Smallest budget: below it, polling is not worth two readings of the clock.
const MIN_BUDGET: Duration = Duration::from_micros(1);

/// Polls between two readings of the clock.
const POLLS: u32 = 32;

/// The poll budget of one ring.
#[derive(Debug)]
pub(super) struct BusyPoll {
    limit: Duration,
    budget: Duration,
    /// When the current period began.
    begin: Option<Instant>,
    polls: u32,
}

impl BusyPoll {
    /// Polls for at most `limit` at a time; never if it is zero.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            budget: limit,
            begin: None,
            polls: 0,
        }
    }

    /// Whether to poll again. To be asked after each poll that found nothing.
    pub(super) fn should_continue(&mut self) -> bool {
        if self.budget.is_zero() {
            return false;
        }
        self.polls += 1;
        let Some(begin) = self.begin else {
            self.begin = Some(Instant::now());
            return true;
        };
        if !self.polls.is_multiple_of(POLLS) || begin.elapsed() < self.budget {
            return true;
        }
        self.begin = None;
        self.budget /= 2;
        if self.budget < MIN_BUDGET {
            self.budget = Duration::ZERO;
        }
        false
    }

    /// Records that a poll found requests, which restores the whole budget.
    pub(super) fn succeeded(&mut self) {
        self.begin = None;
        self.budget = self.limit;
    }

    /// Ends the current period without a result.
    pub(super) fn interrupted(&mut self) {
        self.begin = None;
    }

    /// Records that a kick came after `time` asleep: if polling would have found the request, the
    /// budget grows.
    pub(super) fn slept(&mut self, time: Duration) {
        if time <= self.limit {
            self.budget = (self.budget * 2).max(self.limit / 4).min(self.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zero_limit_never_polls() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        assert!(!poll.should_continue());
        poll.slept(Duration::ZERO);
        poll.succeeded();
        assert!(!poll.should_continue());
    }

    #[test]
    fn fruitless_polling_backs_off_to_zero() {
        let mut poll = BusyPoll::new(Duration::from_micros(20));
        for _ in 0..5 {
            assert!(poll.should_continue());
            while poll.should_continue() {}
        }
        assert!(
            !poll.should_continue(),
            "20 us halved five times is below the minimum"
        );
        poll.slept(Duration::from_secs(1));
        assert!(!poll.should_continue(), "a late kick does not count");
        poll.slept(Duration::from_micros(15));
        assert!(poll.should_continue());
        poll.succeeded();
        assert_eq!(poll.budget, Duration::from_micros(20));
    }
}
