//! Guest suites.
