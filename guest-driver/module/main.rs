// SPDX-License-Identifier: GPL-2.0

//! Driver for the vdma virtio DMA device: DMA between pinned user pages and device memory, and
//! device memory mapped into user space.
//!
//! `ARCHITECTURE.md` in the folder above follows one transfer through the modules.

use kernel::prelude::*;

use crate::{
    io::{deferred, file, request, transfer},
    linux::{anon_file, chardev, compat, slab},
    observe::{debugfs, trace_file::TraceFile},
    operations::buffer,
};

mod driver;
mod io;
mod linux;
mod memory;
mod observe;
mod operations;
#[path = "../../protocol/src/wire/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod protocol;
mod virtio;
mod watchdog;

module! {
    type: VirtioDma,
    name: "vdma",
    authors: ["The vdma authors"],
    description: "vdma virtio DMA device",
    license: "GPL v2",
    alias: ["virtio_dma"],
    params: {
        timeout_ms: u32 {
            default: 30000,
            description: "Milliseconds after which an unanswered request makes the driver reset the device (0: never)",
        },
        dma_bits: u32 {
            default: 64,
            description: "Width of the addresses that the device can reach, 32 to 64: pages beyond are bounced",
        },
        inline_bytes: u32 {
            default: 0,
            description: "Largest read or write that the CPU copies through the BAR, without a request",
        },
        poll_us: u32 {
            default: 100,
            description: "Microseconds for which a plain read or write looks for its completion before it sleeps, beside those that copying takes, while that pays (0: not at all)",
        },
        verify: u32 {
            default: 0,
            description: "1: compare the device's CRC32C of each read and write with the CPU's (EIO if they differ)",
        },
    },
}

/// What the loaded module owns. Fields are dropped in this order: first no device is driven any
/// more, then no work is left, then no object of a cache is in use.
struct VirtioDma {
    _driver: Pin<KBox<virtio::Registration<driver::Driver>>>,
    _debugfs: debugfs::Root,
    _deferred: deferred::Worker,
    _transfers: slab::Registration<transfer::Transfer>,
    _requests: slab::Registration<request::Request>,
}

impl kernel::Module for VirtioDma {
    fn init(module: &'static ThisModule) -> Result<Self> {
        // The device reads and writes headers and responses, which are in the requests.
        let narrow = compat::number(module_parameters::dma_bits.value()) < u64::BITS;
        let zone = if narrow {
            slab::Zone::Dma32
        } else {
            slab::Zone::Normal
        };
        let requests = slab::Registration::new(c"vdma_request", zone)?;
        let transfers = slab::Registration::new(c"vdma_transfer", slab::Zone::Normal)?;
        let deferred = deferred::Worker::new()?;
        chardev::Operations::install::<file::OpenFile>(module);
        anon_file::install_mappable::<buffer::BufferFile>(module);
        anon_file::install_vmalloc::<TraceFile>(module);
        let debugfs = debugfs::Root::new()?;
        Ok(Self {
            _driver: KBox::pin_init(virtio::Registration::new(c"vdma", module), GFP_KERNEL)?,
            _debugfs: debugfs,
            _deferred: deferred,
            _transfers: transfers,
            _requests: requests,
        })
    }
}
