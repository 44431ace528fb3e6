//! Waiting without blocking, and polling for completions.

mod completions;
mod readiness;

/// A queue that is soon full, and requests that the device delays, one after another.
pub(super) const SHALLOW: &[&str] = &["--queue-size=16", "--fault=delay=250ms,range=16M+1M"];

/// Offset of the delayed requests.
pub(super) const SLOW: u64 = 16 << 20;
