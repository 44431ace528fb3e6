//! Running one queue: passes over its ring, requests in batches, completions and notification.
//!
//! [`Processor::pass`] takes what is available in bounded batches, has the engine execute it, and
//! publishes completions. It knows no transport: a [`QueueHost`] notifies the driver and decides
//! how to wait, an [`Interceptor`] may change what happens to a request (`--fault`).

mod batch;
mod error;
mod host;
mod idle;
mod interceptor;
mod pass;
mod request;

pub use self::{
    batch::MAX_BATCH,
    error::PassError,
    host::{IdleAction, QueueHost},
    interceptor::{Decision, Interceptor, PassThrough},
    pass::{Pass, Processor},
    request::{Completion, Request},
};

#[cfg(test)]
mod tests;
