//! Fault injection: how a driver's author reaches each error path.
//!
//! `--fault KIND[=VALUE][,SELECTOR=VALUE]...` A fault happens to each request that all of its
//! selectors choose. Every queue decides for itself, from its own counts and random numbers, so
//! that the same requests meet the same faults whatever other queues do.

mod apply;
mod injector;
mod kind;
mod random;
mod spec;

pub use self::{
    apply::FaultInterceptor,
    injector::{Injector, Plan},
    kind::FaultKind,
    spec::{Action, FaultError, FaultSpec, HELP},
};
