//! The test run: unit tests of the workspace, suites inside guests, scenarios on the host.

pub(crate) mod guests;
pub(crate) mod junit;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod scenarios;
pub(crate) mod select;
pub(crate) mod units;
