// SPDX-License-Identifier: GPL-2.0

//! Scatter-gather lists of pages, coalesced while they are built.

use crate::{
    bindings::{vdma_sg_set_buf, VDMA_SG_END, VDMA_SG_PAGE_LINK_MASK},
    pages::Page,
};
use core::{
    mem::{size_of, MaybeUninit},
    slice,
};
use kernel::{
    bindings::{self, scatterlist},
    page::PAGE_SIZE,
    prelude::*,
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
/// `used` entries are there, at most `limit`: in `spill` if there is one, otherwise at the beginning of
/// `inline`, and then `limit` is at most [`INLINE`].
pub(crate) struct SgList {
    inline: MaybeUninit<[scatterlist; INLINE]>,
    spill: Option<KVec<scatterlist>>,
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
            inline: MaybeUninit::uninit(),
            spill: None,
            used: 0,
            limit: 0,
            bytes: 0,
        }
    }

    /// Makes room for `limit` entries in all; those that are there stay. May sleep.
    pub(crate) fn make_room(&mut self, limit: usize) -> Result {
        if limit > INLINE && self.spill.is_none() {
            let mut spill = KVec::with_capacity(limit, GFP_KERNEL)?;
            spill.extend_from_slice(self.entries(), GFP_KERNEL)?;
            self.spill = Some(spill);
        }
        self.limit = self.limit.max(limit);
        Ok(())
    }

    fn entries(&self) -> &[scatterlist] {
        match &self.spill {
            Some(spill) => spill,
            // SAFETY: `used` entries are initialized, by the type's invariant.
            None => unsafe { slice::from_raw_parts(self.inline.as_ptr().cast(), self.used) },
        }
    }

    fn entries_mut(&mut self) -> &mut [scatterlist] {
        match &mut self.spill {
            Some(spill) => spill,
            // SAFETY: As above.
            None => unsafe {
                slice::from_raw_parts_mut(self.inline.as_mut_ptr().cast(), self.used)
            },
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
        if self.room() == 0 {
            return Err(ENOSPC);
        }
        // What `sg_set_page` does, for loops over many.
        let entry = scatterlist {
            page_link: page.as_ptr() as usize,
            offset: offset as u32,
            length: length as u32,
            ..Default::default()
        };
        match &mut self.spill {
            Some(spill) => spill.push(entry, GFP_KERNEL)?,
            // SAFETY: There is room, so `used` is less than `limit`, which without `spill` is within
            // `inline`; no reference to what is there exists, for the list is borrowed here.
            None => unsafe {
                self.inline
                    .as_mut_ptr()
                    .cast::<scatterlist>()
                    .add(self.used)
                    .write(entry)
            },
        }
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
