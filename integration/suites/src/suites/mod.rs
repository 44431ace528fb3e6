//! All suites. A test is reached as `SUITE::TEST`.

mod guest;

use crate::test::Test;

/// Every suite with its tests.
pub(crate) const SUITES: &[(&str, &[Test])] = &[("guest", guest::TESTS)];
