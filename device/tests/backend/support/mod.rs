//! A backend under test, and a front end with a driver for it.

mod backend;
mod deadline;
mod frontend;
mod guest;
mod metrics;
mod request;
mod ring;

pub use self::{
    backend::{Backend, is_sandboxed},
    deadline::DEADLINE,
    frontend::{BAR, Connect, FEATURES, FrontEnd, await_event},
    guest::Guest,
    metrics::curl,
    request::{DATA, HEADERS, RESPONSES, Request},
    ring::{Buffer, DriverRing, Used, descriptor_flags},
};
