//! A DMA-capable virtio PCI device with BAR memory, emulated as a vhost-user backend.
//!
//! A request passes through [`vhost_user`] (front end, rings, threads) → [`processor`] (batches,
//! completion, notification) → [`virtqueue`] (descriptor chains) → [`engine`] (operations on device
//! memory). `ARCHITECTURE.md` follows one request through these modules; `protocol/SPEC.md`
//! specifies what the guest sees.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "the backend is written for Linux on x86-64: `sandbox::syscalls` lists that machine's system \
     calls, some of which others do not have"
);

pub mod cli;
pub mod control;
pub mod engine;
pub mod fault;
mod lock;
pub mod log_limit;
pub mod log_output;
pub mod memory;
pub mod metrics;
pub mod processor;
pub mod sandbox;
pub mod sigbus;
pub mod size;
pub mod vhost_user;
pub mod virtqueue;
