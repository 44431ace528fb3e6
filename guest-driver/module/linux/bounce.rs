// SPDX-License-Identifier: GPL-2.0

//! Bounce pages, for devices that cannot reach all of memory (parameter `dma_bits`): pages from a
//! low zone take the place of those that are too high, and the CPU copies.
//!
//! The DMA API would do the same (swiotlb), where the device uses it (`VIRTIO_F_ACCESS_PLATFORM`)
//! and the kernel has set memory aside for it. Its mask is set to the limit as
//! well, for what is not data.

use kernel::{bindings, page::PAGE_SIZE, prelude::*};

use crate::linux::{
    bindings::VDMA_GFP_DMA32, page::Page, page_runs::OwnedPage, scatterlist::SgList,
};

/// What a device can reach: frames below an address.
#[derive(Clone, Copy)]
pub(crate) struct Reach {
    bits: u32,
}

impl Reach {
    /// All addresses of this width, at least 32: what zones there are below differs.
    pub(crate) fn of_bits(bits: u32) -> Option<Self> {
        (32..=64).contains(&bits).then_some(Self { bits })
    }

    /// Whether every page is within reach.
    #[inline]
    pub(crate) fn is_everywhere(self) -> bool {
        self.bits >= u64::BITS
    }

    /// Whether `page` is within reach.
    pub(crate) fn includes(self, page: Page<'_>) -> bool {
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

/// A page that takes the place of another.
struct Substitute {
    /// The number of the piece in the list whose page it stands for.
    piece: usize,
    page: OwnedPage,
}

/// The pages that take the place of others in a list.
pub(super) struct Bounced {
    substitutes: KVVec<Substitute>,
    list: SgList,
}

impl Bounced {
    /// Pages for those of `list` that are out of reach; `None` when there are none. May sleep.
    ///
    /// # Safety
    ///
    /// The result is used only while the pages of `list` are held.
    pub(super) unsafe fn new(list: &SgList, reach: Reach) -> Result<Option<KBox<Self>>> {
        let mut last_pages = list
            .page_runs()
            .filter_map(|run| run.get(run.len().saturating_sub(1)));
        if last_pages.all(|page| reach.includes(page)) {
            return Ok(None);
        }
        let pieces = list.pieces().count();
        let mut bounced = KBox::new(
            Self {
                substitutes: KVVec::with_capacity(pieces, GFP_KERNEL_ACCOUNT)?,
                list: SgList::new(),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        bounced.list.clear(pieces)?;
        for (piece, (page, offset, length)) in list.pieces().enumerate() {
            let Self { substitutes, list } = &mut *bounced;
            let page = if reach.includes(page) {
                page
            } else {
                let page = OwnedPage::new(reach.zone())?;
                substitutes.push(Substitute { piece, page }, GFP_KERNEL_ACCOUNT)?;
                substitutes.last().ok_or(ENOMEM)?.page.page()
            };
            // Pieces stay entries of their own: a larger limit would join what the list kept apart.
            // SAFETY: The piece is inside of its page, which is held by the owner of the list that
            // the caller vouches for, or by this object.
            unsafe { list.push(page, offset, length, length) }?;
        }
        Ok(Some(bounced))
    }

    pub(super) fn pages(&self) -> usize {
        self.substitutes.len()
    }

    pub(super) fn terminate(&mut self) -> *mut bindings::scatterlist {
        self.list.terminate()
    }

    /// The pieces of the first `bytes` of `list` that have substitutes, and these.
    fn pairs<'a>(
        &'a self,
        list: &'a SgList,
        bytes: usize,
    ) -> impl Iterator<Item = (Page<'a>, Page<'a>, usize, usize)> {
        let mut left = bytes;
        let mut pieces = list.pieces().enumerate().map(move |(number, piece)| {
            let (page, offset, length) = piece;
            let length = length.min(left);
            left -= length;
            (number, page, offset, length)
        });
        self.substitutes.iter().map_while(move |substitute| {
            let (_, page, offset, length) =
                pieces.find(|(number, ..)| *number == substitute.piece)?;
            (length > 0).then(|| (page, substitute.page.page(), offset, length))
        })
    }

    /// Copies the data of `list`, which this was made for, to the pages that the device can reach.
    /// Any context.
    pub(super) fn copy_out(&self, list: &SgList) {
        for (original, substitute, offset, length) in self.pairs(list, list.bytes()) {
            // SAFETY: The page belongs to this object, which has no reference to its bytes.
            unsafe { original.copy_to(substitute, offset, length) };
        }
    }

    /// Copies the first `bytes` of the data from the pages that the device can reach to those of
    /// `list`, which this was made for. Any context.
    ///
    /// # Safety
    ///
    /// The memory that `list` names may be written to.
    pub(super) unsafe fn copy_in(&self, list: &SgList, bytes: usize) {
        for (original, substitute, offset, length) in self.pairs(list, bytes) {
            // SAFETY: The caller vouches for the memory.
            unsafe { substitute.copy_to(original, offset, length) };
        }
    }
}
