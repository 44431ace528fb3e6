//! The vdma protocol: what a virtio DMA device and its driver say to each other, and what the
//! driver offers to user space.
//!
//! Everything under `wire/` depends on `core` alone and is compiled three times from the same
//! files: into the device, into the Linux kernel module and into user-space programs.
#![no_std]
#![forbid(unsafe_code)]

mod wire;

pub use wire::*;
