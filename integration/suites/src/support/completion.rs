//! What requests have to return and what they returned, for libaio and io_uring alike.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;

/// A completion as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Completion {
    /// As in the request.
    pub(crate) user_data: u64,
    /// Bytes or events, or a negative error number.
    pub(crate) result: i64,
}

impl Completion {
    /// Whether the request transferred exactly `length` bytes.
    pub(crate) fn is_bytes(&self, length: usize) -> bool {
        usize::try_from(self.result) == Ok(length)
    }

    /// Whether the request failed with `error`.
    pub(crate) fn is_error(&self, error: Errno) -> bool {
        self.result == -i64::from(error.raw_os_error())
    }
}

/// The success that a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    /// All of its bytes; 0 for a request without data.
    Bytes(usize),
    /// One or more events of a poll.
    Events,
    /// Whatever the test makes of it: such a request is only waited for with its raw result.
    Raw,
}

/// The requests of one ring or context that have not completed.
#[derive(Debug, Default)]
pub(crate) struct Pending(HashMap<u64, Expected>);

impl Pending {
    /// Notes a request that is being submitted.
    pub(crate) fn submit(&mut self, user_data: u64, expected: Expected) -> Result<()> {
        let earlier = self.0.insert(user_data, expected);
        ensure!(
            earlier.is_none(),
            "request {user_data} is in flight already"
        );
        Ok(())
    }

    /// Takes note of completions; each has to be that of a request in flight.
    pub(crate) fn complete(&mut self, completions: &[Completion]) -> Result<Vec<Expected>> {
        completions
            .iter()
            .map(|completion| {
                self.0.remove(&completion.user_data).with_context(|| {
                    format!("{completion:?}, which belongs to no request or to one that is done")
                })
            })
            .collect()
    }

    /// Takes note of completions, each of which has to be the success that its request asks for.
    pub(crate) fn succeed(&mut self, completions: &[Completion]) -> Result<()> {
        let expected = self.complete(completions)?;
        for (completion, expected) in completions.iter().zip(expected) {
            let met = match expected {
                Expected::Bytes(length) => completion.is_bytes(length),
                Expected::Events => completion.result > 0,
                Expected::Raw => false,
            };
            ensure!(met, "{completion:?} instead of {expected:?}");
        }
        Ok(())
    }

    /// Takes note of completions, each of which has to be `error`.
    pub(crate) fn fail(&mut self, completions: &[Completion], error: Errno) -> Result<()> {
        self.complete(completions)?;
        for completion in completions {
            ensure!(
                completion.is_error(error),
                "{completion:?} instead of {error:?}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending() -> Pending {
        let mut pending = Pending::default();
        pending.submit(1, Expected::Bytes(512)).unwrap();
        pending.submit(2, Expected::Events).unwrap();
        pending
    }

    fn completion(user_data: u64, result: i64) -> Completion {
        Completion { user_data, result }
    }

    #[test]
    fn whole_transfers_and_events_are_successes() {
        let completions = [completion(2, 4), completion(1, 512)];
        pending().succeed(&completions).unwrap();
    }

    #[test]
    fn errors_and_short_transfers_are_no_successes() {
        for result in [-5, 0, 511, 513] {
            assert!(pending().succeed(&[completion(1, result)]).is_err());
        }
        assert!(pending().succeed(&[completion(2, 0)]).is_err());
    }

    #[test]
    fn only_the_expected_error_will_do() {
        pending().fail(&[completion(1, -5)], Errno::IO).unwrap();
        assert!(pending().fail(&[completion(1, 512)], Errno::IO).is_err());
        assert!(pending().fail(&[completion(1, -5)], Errno::NODEV).is_err());
    }

    #[test]
    fn a_request_completes_once() {
        let twice = [completion(1, 512), completion(1, 512)];
        assert!(pending().succeed(&twice).is_err());
        assert!(pending().complete(&twice).is_err());
        assert!(pending().succeed(&[completion(3, 512)]).is_err());
        assert!(pending().submit(1, Expected::Bytes(1)).is_err());
    }
}
