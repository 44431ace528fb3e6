//! Keeping a guest from flooding the log.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Lines that pass at once, and again after each [`PERIOD`] without more than these.
const BURST: u32 = 10;
/// How long a burst counts.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets some log lines through, and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begin: Option<Instant>,
    passed: u32,
    held_back: u64,
}

impl LogLimit {
    /// Whether a line may be logged now; if so, how many were held back since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let over = state
            .begin
            .is_none_or(|begin| now.duration_since(begin) >= PERIOD);
        if over {
            state.begin = Some(now);
            state.passed = 0;
        }
        if state.passed == BURST {
            state.held_back += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_logged_and_the_rest_counted() {
        let limit = LogLimit::default();
        let begin = Instant::now();
        for _ in 0..BURST {
            assert_eq!(limit.pass_at(begin), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limit.pass_at(begin + PERIOD / 2), None);
        }
        assert_eq!(limit.pass_at(begin + PERIOD), Some(7));
        assert_eq!(limit.pass_at(begin + PERIOD), Some(0));
    }
}
