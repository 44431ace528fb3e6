// SPDX-License-Identifier: GPL-2.0

//! Scatter-gather lists of pages, coalesced while they are built.

use core::{
    mem::{MaybeUninit, size_of},
    slice,
};

use kernel::{
    bindings::{self, scatterlist},
    page::PAGE_SIZE,
    prelude::*,
};

use crate::{
    io::pages::Page,
    linux::bindings::{VDMA_SG_END, VDMA_SG_PAGE_LINK_MASK, vdma_sg_set_buf},
};

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

/// The first page of an entry of a list, each of which has one: `sg_page`, for loops over many.
fn page_of(entry: &scatterlist) -> Page {
    let page = entry.page_link & !VDMA_SG_PAGE_LINK_MASK;
    // SAFETY: Entries are made by `SgList::push` alone, which puts a page into each; the other bits
    // mark the end of a list.
    unsafe { Page::from_ptr(page as *mut bindings::page) }
}

/// A list of pages. Has to stay in place while it is in a virtqueue.
///
/// # Invariants
///
/// `used` entries are there, at most `limit`, at the beginning of [`SgList::slots`], which are at least
/// `limit`.
pub(crate) struct SgList {
    inline: [MaybeUninit<scatterlist>; INLINE],
    /// The slots, instead of `inline`, of a longer list.
    spill: Option<KVec<MaybeUninit<scatterlist>>>,
    used: usize,
    limit: usize,
    bytes: usize,
}

// SAFETY: The page pointers inside mean the same on every CPU and to every task.
unsafe impl Send for SgList {}
// SAFETY: `&SgList` only reads.
unsafe impl Sync for SgList {}

impl SgList {
    /// A list without room: [`SgList::make_room`] is next.
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self {
            // An array that is uninitialized as a whole costs nothing, elements one by one a memset.
            // SAFETY: Its elements need no initialization.
            inline: unsafe { MaybeUninit::uninit().assume_init() },
            spill: None,
            used: 0,
            limit: 0,
            bytes: 0,
        }
    }

    /// Makes room for `limit` entries in all, of an empty list. May sleep.
    pub(crate) fn make_room(&mut self, limit: usize) -> Result {
        if limit > INLINE {
            let mut spill = KVec::with_capacity(limit, GFP_KERNEL)?;
            // SAFETY: There is room for so many, and they need no initialization.
            unsafe { spill.inc_len(limit) };
            self.spill = Some(spill);
        }
        self.limit = limit;
        Ok(())
    }

    fn slots(&self) -> &[MaybeUninit<scatterlist>] {
        match &self.spill {
            None => &self.inline,
            Some(spill) => spill,
        }
    }

    fn slots_mut(&mut self) -> &mut [MaybeUninit<scatterlist>] {
        match &mut self.spill {
            None => &mut self.inline,
            Some(spill) => spill,
        }
    }

    fn entries(&self) -> &[scatterlist] {
        let first = self.slots().as_ptr().cast();
        // SAFETY: So many are initialized, by the type's invariant.
        unsafe { slice::from_raw_parts(first, self.used) }
    }

    fn entries_mut(&mut self) -> &mut [scatterlist] {
        let used = self.used;
        let first = self.slots_mut().as_mut_ptr().cast();
        // SAFETY: So many are initialized, by the type's invariant.
        unsafe { slice::from_raw_parts_mut(first, used) }
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

    /// Appends `length` bytes from `offset` on of the run of pages that begins with `page`.
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
        if let Some(last) = self.entries_mut().last_mut() {
            let end = last.offset as usize + last.length as usize;
            let follows = offset == 0
                && end % PAGE_SIZE == 0
                && page_of(last).is_followed_by(end / PAGE_SIZE, page);
            if follows && last.length as usize + length <= max_entry {
                last.length += length as u32;
                self.bytes += length;
                return Ok(());
            }
        }
        let (used, room) = (self.used, self.room());
        let slot = self.slots_mut().get_mut(used).filter(|_| room > 0);
        // What `sg_set_page` does, for loops over many.
        slot.ok_or(ENOSPC)?.write(scatterlist {
            page_link: page.as_ptr() as usize,
            offset: offset as u32,
            length: length as u32,
            ..Default::default()
        });
        self.used += 1;
        self.bytes += length;
        Ok(())
    }

    /// Appends `bytes` bytes from `offset` on of `pages`, in as few entries as [`SgList::push`] allows.
    ///
    /// There has to be room for an entry for each page.
    pub(crate) fn push_pages(
        &mut self,
        pages: &[Page],
        mut offset: usize,
        bytes: usize,
        max_entry: usize,
    ) -> Result {
        let mut left = bytes;
        let mut rest = pages;
        while let Some(&first) = rest.first() {
            let most = (max_entry / PAGE_SIZE).max(1);
            let mut count = 1;
            while count < most && rest.get(count) == Some(&first.nth(count)) {
                count += 1;
            }
            let length = left.min(count * PAGE_SIZE - offset);
            self.push(first, offset, length, max_entry)?;
            left -= length;
            offset = 0;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// The runs of pages that the entries touch: the first page, and how many.
    pub(crate) fn page_runs(&self) -> impl Iterator<Item = (Page, usize)> + '_ {
        self.entries().iter().map(|entry| {
            let pages = (entry.offset as usize + entry.length as usize).div_ceil(PAGE_SIZE);
            (page_of(entry), pages)
        })
    }

    /// The bytes of the list, page by page: the page, where they begin in it, and how many.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Page, usize, usize)> + '_ {
        self.entries().iter().flat_map(|entry| {
            let first = page_of(entry);
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
        let entries = self.entries_mut();
        let Some(last) = entries.last_mut() else {
            return core::ptr::null_mut();
        };
        last.page_link |= VDMA_SG_END;
        entries.as_mut_ptr()
    }
}
