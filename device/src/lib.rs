//! A DMA-capable virtio PCI device with BAR memory, emulated as a vhost-user back end.
//!
//! A request travels `vhost_user` (front end, rings as file descriptors) → [`queue`] (descriptor
//! chains) → [`request`] (header, data parts, response) → [`engine`] (operations on device memory).
//! `ARCHITECTURE.md` draws the way; `protocol/SPEC.md` specifies what the guest sees.

pub mod bus_error;
pub mod cli;
pub mod control;
pub mod engine;
pub mod fault;
pub mod log_limit;
pub mod memory;
pub mod metrics;
pub mod queue;
pub mod request;
pub mod sandbox;
pub mod size;
pub mod vhost_user;
