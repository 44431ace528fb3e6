//! Rate-limiting log lines that a guest can cause.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::lock::lock;

/// Lines logged in one [`PERIOD`]; those beyond are suppressed.
const BURST: u32 = 10;
/// Time after which a new burst may begin.
const PERIOD: Duration = Duration::from_secs(10);

/// Lets a limited number of log lines through and counts the others.
#[derive(Debug)]
pub struct LogLimit {
    burst: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    begin: Option<Instant>,
    logged: u32,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::with_burst(BURST)
    }
}

impl LogLimit {
    /// Lets this number of lines through in a period.
    #[must_use]
    pub fn with_burst(burst: u32) -> Self {
        Self {
            burst,
            state: Mutex::default(),
        }
    }

    /// Whether a line may be logged now; if so, how many were suppressed since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.state);
        let expired = state
            .begin
            .is_none_or(|begin| now.duration_since(begin) >= PERIOD);
        if expired {
            state.begin = Some(now);
            state.logged = 0;
        }
        if state.logged == self.burst {
            state.suppressed += 1;
            return None;
        }
        state.logged += 1;
        Some(std::mem::take(&mut state.suppressed))
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
