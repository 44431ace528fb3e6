//! What is known of a test that has run.

use std::time::Duration;

/// How a test ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// As it should.
    Passed,
    /// Not as it should; why.
    Failed(String),
    /// It could not run here; why.
    Skipped(String),
}

/// A test that has run.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// How long it took, where that is known.
    pub(crate) time: Option<Duration>,
    /// What it printed.
    pub(crate) output: String,
}
