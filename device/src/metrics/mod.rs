//! Counters of what a device has done.
//!
//! The counters of a queue are written by the one thread that runs it and read by any: relaxed
//! stores, which cost the hot path next to nothing. They count from the start of the process,
//! across front ends.

mod counters;
mod instruments;
mod prometheus;
mod summary;

pub use self::{
    counters::{DeviceMetrics, OperationMetrics, QueueMetrics, nanoseconds},
    instruments::{BUCKETS, Counter, Histogram},
    prometheus::prometheus_text,
    summary::summary_lines,
};
