//! The machine that runs the harness: its packages, programs, processes and signals, and the cache.

pub(crate) mod accel;
pub(crate) mod cache;
pub(crate) mod cargo;
pub(crate) mod interrupt;
pub(crate) mod mirror;
pub(crate) mod packages;
pub(crate) mod parallel;
pub(crate) mod process;
pub(crate) mod process_groups;
pub(crate) mod progress;
pub(crate) mod requirements;
pub(crate) mod tools;
