// SPDX-License-Identifier: GPL-2.0

//! Bounce pages, for devices that cannot reach all of memory (parameter `dma_bits`): pages from a low
//! zone take the place of those that are too high, and the CPU copies.
//!
//! The DMA API would do the same (swiotlb), where the device uses it (`VIRTIO_F_ACCESS_PLATFORM`) and
//! the kernel has set memory aside for it. It is told of the limit, too, for what is not data.

use core::ptr;

use kernel::{bindings, page::PAGE_SIZE, prelude::*};

use crate::{
    io::pages::Page,
    linux::{
        bindings::{VDMA_GFP_DMA32, vdma_alloc_pages},
        scatterlist::SgList,
    },
};

/// What a device can reach: frames below an address.
#[derive(Clone, Copy)]
pub(crate) struct Reach {
    bits: u32,
}

impl Reach {
    /// All addresses of so many bits, 32 at the least: what zones there are below differs.
    pub(crate) fn of_bits(bits: u32) -> Option<Self> {
        (32..=64).contains(&bits).then_some(Self { bits })
    }

    /// Whether every page is within reach.
    pub(crate) fn is_everywhere(self) -> bool {
        self.bits >= u64::BITS
    }

    /// Whether `page` is within reach.
    pub(crate) fn includes(self, page: Page) -> bool {
        let last = page.physical_address() + (PAGE_SIZE as u64 - 1);
        self.is_everywhere() || last >> self.bits == 0
    }

    /// The zone to take pages from.
    fn zone(self) -> bindings::gfp_t {
        if self.is_everywhere() {
            0
        } else {
            VDMA_GFP_DMA32
        }
    }
}

/// A page of the data, and the one that takes its place.
struct Pair {
    high: Page,
    low: Page,
    offset: usize,
    length: usize,
}

/// The pages that take the place of others.
pub(crate) struct Bounced {
    pairs: KVVec<Pair>,
    list: SgList,
}

impl Bounced {
    /// Pages for those of `list` that are out of reach; `None` when there are none. May sleep.
    pub(crate) fn new(list: &SgList, reach: Reach) -> Result<Option<KBox<Self>>> {
        let mut last_pages = list
            .page_runs()
            .map(|(first, count)| first.nth(count.max(1) - 1));
        if last_pages.all(|page| reach.includes(page)) {
            return Ok(None);
        }
        let pieces = list.pieces().count();
        let mut bounced = KBox::new(
            Self {
                pairs: KVVec::with_capacity(pieces, GFP_KERNEL)?,
                list: SgList::new(),
            },
            GFP_KERNEL,
        )?;
        bounced.list.make_room(pieces)?;
        for (page, offset, length) in list.pieces() {
            let page = if reach.includes(page) {
                page
            } else {
                // SAFETY: Process context, where sleeping is allowed.
                let low = unsafe {
                    vdma_alloc_pages(
                        bindings::GFP_KERNEL | bindings::__GFP_ZERO | reach.zone(),
                        0,
                    )
                };
                if low.is_null() {
                    return Err(ENOMEM);
                }
                // SAFETY: The allocator returned a page.
                let low = unsafe { Page::from_ptr(low) };
                let pair = Pair {
                    high: page,
                    low,
                    offset,
                    length,
                };
                bounced
                    .pairs
                    .push(pair, GFP_KERNEL)
                    .inspect_err(|_| low.put())?;
                low
            };
            // Pieces stay entries of their own: `usize::MAX` would join what the list kept apart.
            bounced.list.push(page, offset, length, length)?;
        }
        Ok(Some(bounced))
    }

    pub(crate) fn pages(&self) -> usize {
        self.pairs.len()
    }

    pub(crate) fn sg_list(&mut self) -> *mut bindings::scatterlist {
        self.list.terminate()
    }

    /// # Safety
    ///
    /// The pages of the list that this was made of are held.
    unsafe fn copy(&self, to_device: bool) {
        for pair in &self.pairs {
            let (from, to) = if to_device {
                (pair.high, pair.low)
            } else {
                (pair.low, pair.high)
            };
            // SAFETY: The caller holds one page, this object the other; the pieces are inside. The
            // pages are different ones.
            unsafe {
                from.with_bytes(pair.offset, pair.length, |from, length| {
                    to.with_bytes(pair.offset, length, |to, length| {
                        ptr::copy_nonoverlapping(from, to, length);
                    })
                })
            };
        }
    }

    /// Copies the data to the pages that the device can reach. Any context.
    ///
    /// # Safety
    ///
    /// The pages of the list that this was made of are held.
    pub(crate) unsafe fn copy_out(&self) {
        // SAFETY: The caller vouches for it.
        unsafe { self.copy(true) }
    }

    /// Copies the data from the pages that the device can reach. Any context.
    ///
    /// # Safety
    ///
    /// The pages of the list that this was made of are held.
    pub(crate) unsafe fn copy_in(&self) {
        // SAFETY: The caller vouches for it.
        unsafe { self.copy(false) }
    }
}

impl Drop for Bounced {
    fn drop(&mut self) {
        for pair in &self.pairs {
            pair.low.put();
        }
    }
}
