//! All suites. A test is reached as `SUITE::TEST`.

mod guest;
mod read_write;

use crate::test::Test;

/// Every suite with its tests.
pub(crate) const SUITES: &[(&str, &[Test])] =
    &[("guest", guest::TESTS), ("read_write", read_write::TESTS)];
