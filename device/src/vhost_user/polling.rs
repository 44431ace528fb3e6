//! How long to look at an idle ring before sleeping.
//!
//! Looking costs a CPU, sleeping costs the driver a kick and both sides a wake-up. So a ring is
//! looked at for a while after its last request, but only as long as that has been worth it: each
//! time in vain halves the while, down to nothing, and a kick that came soon after going to sleep
//! brings it back. An idle ring is looked at once, and then costs nothing.

use std::time::{Duration, Instant};

/// Below this, looking is not worth the two readings of the clock.
const LEAST: Duration = Duration::from_micros(1);

/// Looks at the ring between two readings of the clock.
const LOOKS: u32 = 32;

/// The memory of one ring's idle times.
#[derive(Debug)]
pub(super) struct Polling {
    limit: Duration,
    budget: Duration,
    begin: Option<Instant>,
    looks: u32,
}

impl Polling {
    /// Looks for at most `limit` at a time; never for zero.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            budget: limit,
            begin: None,
            looks: 0,
        }
    }

    /// Whether to look again. To be asked after each look in vain.
    pub(super) fn go_on(&mut self) -> bool {
        if self.budget.is_zero() {
            return false;
        }
        self.looks += 1;
        let Some(begin) = self.begin else {
            self.begin = Some(Instant::now());
            return true;
        };
        if !self.looks.is_multiple_of(LOOKS) || begin.elapsed() < self.budget {
            return true;
        }
        self.begin = None;
        self.budget /= 2;
        if self.budget < LEAST {
            self.budget = Duration::ZERO;
        }
        false
    }

    /// A look was not in vain.
    pub(super) fn found(&mut self) {
        self.begin = None;
        self.budget = self.limit;
    }

    /// Looking was given up for another reason.
    pub(super) fn interrupted(&mut self) {
        self.begin = None;
    }

    /// After `time` asleep there was a kick.
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
        let mut polling = Polling::new(Duration::ZERO);
        assert!(!polling.go_on());
        polling.slept(Duration::ZERO);
        polling.found();
        assert!(!polling.go_on());
    }

    #[test]
    fn fruitless_polling_backs_off_to_zero() {
        let mut polling = Polling::new(Duration::from_micros(20));
        for _ in 0..5 {
            assert!(polling.go_on());
            while polling.go_on() {}
        }
        assert!(!polling.go_on(), "five halvings of 20 us are less than one");
        polling.slept(Duration::from_secs(1));
        assert!(!polling.go_on(), "a kick that came late does not count");
        polling.slept(Duration::from_micros(15));
        assert!(polling.go_on());
        polling.found();
        assert_eq!(polling.budget, Duration::from_micros(20));
    }
}
