// SPDX-License-Identifier: GPL-2.0

//! Driver for the vdma virtio DMA device: DMA between pinned user pages and device memory, and
//! device memory mapped into user space.
//!
//! `ARCHITECTURE.md` in the folder above describes the module. To read it as code, follow a read:
//!
//! 1. `io/file.rs`: the operations of an open file. A read hands its `kiocb` and `iov_iter` on.
//! 2. `io/submit.rs`: the read becomes requests.
//! 3. `io/request.rs`: what a request is, and the states that it goes through.
//! 4. `linux/page_list.rs`: the caller's pages are pinned.
//! 5. `io/queue.rs`: the request is put into the ring, the device is kicked, and the used request
//!    is taken off the ring again.
//! 6. `io/completion.rs`: the response is checked, and the caller completes.
//!
//! Then `driver.rs` for how a device comes and goes, and `operations/command.rs` for all that is
//! not a read or a write.

use kernel::{prelude::*, sync::UniqueArc};

use crate::{
    io::{file, request, transfer},
    linux::{
        anon_file, chardev, compat,
        slab::{CacheGuard, Counted, SlabBox, Zone},
        unload::UnloadGuard,
        workqueue::DeferredWorker,
    },
    observe::{debugfs, trace_file::TraceFile},
    operations::buffer::{self, BufferFile, DmaBuffer},
};

// Unsafe code is in the wrappers of `linux` and `virtio`, and in two blocks below: that no object
// of a cache is left when the module is unloaded follows from the order of the fields of
// `VdmaModule`.
#[forbid(unsafe_code)]
mod driver;
#[forbid(unsafe_code)]
mod io;
mod linux;
#[forbid(unsafe_code)]
mod memory;
#[forbid(unsafe_code)]
mod observe;
#[forbid(unsafe_code)]
mod operations;
#[path = "../../protocol/src/wire/mod.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
#[forbid(unsafe_code)]
mod protocol;
mod virtio;
#[forbid(unsafe_code)]
mod watchdog;

module! {
    type: VdmaModule,
    name: "vdma",
    authors: ["The vdma authors"],
    description: "vdma virtio DMA device",
    license: "GPL v2",
    alias: ["virtio_dma"],
    params: {
        timeout_ms: u32 {
            default: 30000,
            description: "time in milliseconds after which a request times out and the device is reset (0 disables)",
        },
        dma_bits: u32 {
            default: 64,
            description: "width in bits of the addresses that the device can reach, 32 to 64: pages beyond are bounced",
        },
        inline_bytes: u32 {
            default: 0,
            description: "largest read or write in bytes that the CPU copies through the BAR, without a request (0 disables)",
        },
        poll_us: u32 {
            default: 100,
            description: "maximum time in microseconds to busy-poll for a completion before sleeping (adaptive; 0 disables)",
        },
        verify: u32 {
            default: 0,
            description: "compare the device's CRC32C of each read and write with the CPU's, EIO if they differ (0 disables)",
        },
    },
}

/// What the loaded module owns. Fields are dropped in this order: first the driver is unbound from
/// all devices, then no work is left, then no callback runs, then no object of a cache is in use.
struct VdmaModule {
    _driver: Pin<KBox<virtio::DriverRegistration<driver::Driver>>>,
    _debugfs: debugfs::Root,
    _written: DeferredWorker<KBox<transfer::Written>>,
    _redirty: DeferredWorker<SlabBox<request::Request>>,
    _released: DeferredWorker<Pin<UniqueArc<DmaBuffer>>>,
    _users: UnloadGuard,
    _transfers: CacheGuard<Counted<transfer::Transfer>>,
    _requests: CacheGuard<request::Request>,
}

impl kernel::Module for VdmaModule {
    fn init(module: &'static ThisModule) -> Result<Self> {
        // The device reads and writes headers and responses, which are in the requests.
        let narrow = compat::number(module_parameters::dma_bits.value()) < u64::BITS;
        let zone = if narrow { Zone::Dma32 } else { Zone::Normal };
        // SAFETY: Requests are made by drivers and open files, and held by them and by deferred
        // work: all of these are gone when the guard is dropped, last of the fields below, or
        // before there are any.
        let requests = unsafe { CacheGuard::new(c"vdma_request", zone) }?;
        // SAFETY: Transfers are made and held by what makes and holds requests, and by commands of
        // io_uring, which keep the file that they were submitted to, and so the module.
        let transfers = unsafe { CacheGuard::new(c"vdma_transfer", Zone::Normal) }?;
        let released = DeferredWorker::new(&buffer::RELEASED)?;
        let redirty = DeferredWorker::new(&request::REDIRTY)?;
        let written = DeferredWorker::new(&transfer::WRITTEN)?;
        chardev::install::<file::OpenFile>(module);
        anon_file::install_mappable::<BufferFile>(module);
        anon_file::install_vmalloc::<TraceFile>(module);
        let debugfs = debugfs::Root::new()?;
        Ok(Self {
            _driver: KBox::pin_init(virtio::DriverRegistration::new(c"vdma", module), GFP_KERNEL)?,
            _debugfs: debugfs,
            _written: written,
            _redirty: redirty,
            _released: released,
            _users: UnloadGuard::new(),
            _transfers: transfers,
            _requests: requests,
        })
    }
}
