//! Scenarios: tests that act on the host while a guest runs, and tests of `cargo vm` itself.
//!
//! A scenario either starts `cargo vm` as a user would (`Context::cargo_vm`) or boots a guest and
//! keeps its handle (`Context::boot`).

mod context;
mod harness;
mod hotplug;
mod measure;
mod outage;
mod registry;
pub(crate) mod runner;
mod sleep;
