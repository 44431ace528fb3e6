// SPDX-License-Identifier: GPL-2.0

//! Scatter-gather lists of pages, coalesced while they are built.

use crate::{
    bindings::{vdma_sg_mark_end, vdma_sg_page, vdma_sg_set_buf, vdma_sg_set_page},
    pages::Page,
};
use core::mem::size_of;
use kernel::{bindings::scatterlist, page::PAGE_SIZE, prelude::*};

/// Entries that fit into the list itself; longer lists get an allocation of their own.
const INLINE: usize = 4;

/// One entry that covers a structure of the driver, for the header and the response of a request.
pub(crate) struct SgEntry(scatterlist);

impl SgEntry {
    pub(crate) fn empty() -> Self {
        Self(scatterlist::default())
    }

    /// Points the entry at `value`, which has to be in directly mapped memory (slab, not stack or
    /// vmalloc): the entry holds its page.
    ///
    /// # Safety
    ///
    /// `value` stays where it is, and belongs to the device, while the entry is in a virtqueue.
    pub(crate) unsafe fn set<T>(&mut self, value: *const T) {
        // SAFETY: The entry is valid for writes; only the address of `value` is taken.
        unsafe { vdma_sg_set_buf(&mut self.0, value.cast(), size_of::<T>() as u32) }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut scatterlist {
        &mut self.0
    }
}

/// A list of pages. Has to stay in place while it is in a virtqueue.
pub(crate) struct SgList {
    inline: [scatterlist; INLINE],
    spill: KVec<scatterlist>,
    used: usize,
    limit: usize,
    bytes: usize,
}

// SAFETY: The page pointers inside mean the same on every CPU and to every task.
unsafe impl Send for SgList {}
// SAFETY: `&SgList` only reads.
unsafe impl Sync for SgList {}

impl SgList {
    /// A list with room for `limit` entries. May sleep.
    pub(crate) fn with_room(limit: usize) -> Result<Self> {
        let mut spill = KVec::new();
        if limit > INLINE {
            spill.extend_with(limit, scatterlist::default(), GFP_KERNEL)?;
        }
        Ok(Self {
            inline: [scatterlist::default(); INLINE],
            spill,
            used: 0,
            limit,
            bytes: 0,
        })
    }

    fn entries(&self) -> &[scatterlist] {
        let all = if self.limit > INLINE {
            &self.spill[..]
        } else {
            &self.inline[..]
        };
        &all[..self.used]
    }

    fn slots(&mut self) -> &mut [scatterlist] {
        if self.limit > INLINE {
            &mut self.spill
        } else {
            &mut self.inline
        }
    }

    /// Entries in the list.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Further entries that the list has room for.
    pub(crate) fn room(&self) -> usize {
        self.limit - self.used
    }

    /// Bytes that the list covers.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends `length` bytes at `offset` of `page`.
    ///
    /// The bytes join the last entry when they follow it in physical memory at a page boundary and
    /// the entry stays within `max_entry` bytes. Bytes that continue inside a page do not join it:
    /// each entry holds one pin for every page it touches, and such a page has been pinned twice.
    pub(crate) fn push(
        &mut self,
        page: Page,
        offset: usize,
        length: usize,
        max_entry: usize,
    ) -> Result {
        if let Some(last) = self.used.checked_sub(1) {
            let slot = &mut self.slots()[last];
            let end = slot.offset as usize + slot.length as usize;
            // SAFETY: Every used entry has a page.
            let first_page = unsafe { vdma_sg_page(slot) };
            let follows = offset == 0
                && end % PAGE_SIZE == 0
                && first_page.wrapping_add(end / PAGE_SIZE) == page.as_ptr();
            if follows && slot.length as usize + length <= max_entry {
                slot.length += length as u32;
                self.bytes += length;
                return Ok(());
            }
        }
        if self.room() == 0 {
            return Err(ENOSPC);
        }
        let used = self.used;
        let slot = &mut self.slots()[used];
        *slot = scatterlist::default();
        // SAFETY: The slot is valid for writes; a page and a range inside of it make a valid entry.
        unsafe { vdma_sg_set_page(slot, page.as_ptr(), length as u32, offset as u32) };
        self.used += 1;
        self.bytes += length;
        Ok(())
    }

    /// The runs of pages that the entries touch: the first page, and how many.
    pub(crate) fn page_runs(&self) -> impl Iterator<Item = (Page, usize)> + '_ {
        self.entries().iter().map(|entry| {
            let mut copy = *entry;
            // SAFETY: Every used entry has a page.
            let page = unsafe { Page::from_ptr(vdma_sg_page(&mut copy)) };
            let pages = (entry.offset as usize + entry.length as usize).div_ceil(PAGE_SIZE);
            (page, pages)
        })
    }

    /// The bytes of the list, page by page: the page, where they begin in it, and how many.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Page, usize, usize)> + '_ {
        self.entries().iter().flat_map(|entry| {
            let mut copy = *entry;
            // SAFETY: Every used entry has a page.
            let first = unsafe { Page::from_ptr(vdma_sg_page(&mut copy)) };
            let begin = entry.offset as usize;
            let end = begin + entry.length as usize;
            (begin / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).map(move |index| {
                let from = begin.max(index * PAGE_SIZE);
                let to = end.min((index + 1) * PAGE_SIZE);
                (first.nth(index), from - index * PAGE_SIZE, to - from)
            })
        })
    }

    /// Bytes of each entry.
    pub(crate) fn entry_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries().iter().map(|entry| entry.length as usize)
    }

    /// The list as the virtqueue wants it, or null when it is empty.
    pub(crate) fn terminate(&mut self) -> *mut scatterlist {
        let Some(last) = self.used.checked_sub(1) else {
            return core::ptr::null_mut();
        };
        let slots = self.slots();
        // SAFETY: The slot is an entry of this list.
        unsafe { vdma_sg_mark_end(&mut slots[last]) };
        slots.as_mut_ptr()
    }
}
