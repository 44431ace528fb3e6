//! The time limit of all tests.

use std::time::Duration;

/// Time limit for events that a test waits for. Only a failing test reaches it.
pub const DEADLINE: Duration = Duration::from_secs(20);
