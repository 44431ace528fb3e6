//! Independent steps in parallel.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};

use crate::host::process_groups;

/// Steps that run in parallel; when one fails, the processes of the others are terminated.
pub(crate) struct Steps {
    cause: Mutex<Option<anyhow::Error>>,
    end_others: fn(),
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            cause: Mutex::default(),
            end_others: || process_groups::signal_all(rustix::process::Signal::TERM),
        }
    }
}

/// A failure whose cause is kept in [`Steps`].
#[derive(Debug, thiserror::Error)]
#[error("a step failed")]
struct Recorded;

impl Steps {
    /// Runs both in parallel; calls may be nested.
    pub(crate) fn both<A: Send, B: Send>(
        &self,
        first: impl FnOnce() -> Result<A> + Send,
        second: impl FnOnce() -> Result<B> + Send,
    ) -> Result<(A, B)> {
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| first().map_err(|error| self.record(error)));
            let second = second().map_err(|error| self.record(error));
            (first.join(), second)
        });
        let first = first.map_err(|_| anyhow!("a thread of the harness panicked"))?;
        Ok((first?, second?))
    }

    /// Records the first failure; later ones are its consequences.
    fn record(&self, error: anyhow::Error) -> anyhow::Error {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        if cause.is_none() && !error.is::<Recorded>() {
            *cause = Some(error);
            (self.end_others)();
        }
        Recorded.into()
    }

    /// Replaces the error of `result` by the first failure.
    pub(crate) fn explain<T>(self, result: Result<T>) -> Result<T> {
        let cause = self
            .cause
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        result.map_err(|error| cause.unwrap_or(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that do not terminate the processes of other tests.
    fn steps() -> Steps {
        Steps {
            end_others: || {},
            ..Steps::default()
        }
    }

    #[test]
    fn a_failure_of_one_side_is_the_result_of_both() {
        let failing = |text: &'static str| move || -> Result<u8> { Err(anyhow!(text)) };
        let steps = steps();
        let result = steps.both(failing("first"), || Ok(2));
        assert_eq!(steps.explain(result).unwrap_err().to_string(), "first");
        let steps = self::steps();
        let result = steps.both(|| Ok(1), || steps.both(|| Ok(2), failing("inner")));
        assert_eq!(steps.explain(result).unwrap_err().to_string(), "inner");
        assert_eq!(self::steps().both(|| Ok(1), || Ok(2)).unwrap(), (1, 2));
    }
}
