//! Guest suites.
fn main() {}
