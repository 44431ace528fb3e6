// SPDX-License-Identifier: GPL-2.0

//! Driver for the vdma virtio DMA device: DMA between pinned user pages and device memory, and
//! device memory mapped into user space.
//!
//! `ARCHITECTURE.md` beside this file follows one transfer through the modules.

use kernel::prelude::*;

mod bar;
mod bindings;
mod chardev;
mod compat;
mod counters;
mod device;
mod file;
mod ioctl;
mod log;
mod pages;
#[path = "../../protocol/src/wire/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod protocol;
mod queue;
mod redirty;
mod request;
mod scatterlist;
mod slab;
mod spinlock;
mod transfer;
mod virtio;
mod vma;
mod wait;
mod watchdog;

module! {
    type: VirtioDma,
    name: "virtio_dma",
    authors: ["The vdma authors"],
    description: "vdma virtio DMA device",
    license: "GPL v2",
    params: {
        timeout_ms: u32 {
            default: 30000,
            description: "Milliseconds after which an unanswered request makes the driver reset the device (0: never)",
        },
    },
}

/// What the loaded module owns. Fields are dropped in this order: first no device is driven any
/// more, then nothing is left to redirty, then no object of a cache is in use.
struct VirtioDma {
    _driver: Pin<KBox<virtio::Registration<device::Driver>>>,
    _redirty: redirty::Worker,
    _transfers: slab::Registration<transfer::Transfer>,
    _requests: slab::Registration<request::Request>,
}

impl kernel::Module for VirtioDma {
    fn init(module: &'static ThisModule) -> Result<Self> {
        let requests = slab::Registration::new(c"vdma_request")?;
        let transfers = slab::Registration::new(c"vdma_transfer")?;
        let redirty = redirty::Worker::new()?;
        chardev::Operations::install::<file::OpenFile>(module);
        Ok(Self {
            _driver: KBox::pin_init(virtio::Registration::new(c"virtio_dma", module), GFP_KERNEL)?,
            _redirty: redirty,
            _transfers: transfers,
            _requests: requests,
        })
    }
}
