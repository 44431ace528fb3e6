//! The result of a test.

use std::time::Duration;

/// How a test ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// It succeeded.
    Passed,
    /// It failed, for this reason.
    Failed(String),
    /// It could not run here, for this reason.
    Skipped(String),
}

/// A test that has run.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// Its duration, if known.
    pub(crate) time: Option<Duration>,
    /// Its output.
    pub(crate) output: String,
}
