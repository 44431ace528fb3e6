// SPDX-License-Identifier: GPL-2.0

//! Scatter-gather lists of pages, coalesced while they are built.

use core::{
    mem::{MaybeUninit, size_of},
    ptr::NonNull,
    slice,
};

use kernel::{
    bindings::{self, scatterlist},
    page::PAGE_SIZE,
    prelude::*,
};

use crate::linux::{
    bindings::{VDMA_SG_END, VDMA_SG_PAGE_LINK_MASK, vdma_sg_set_buf},
    page::{Page, PageRun},
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
#[inline]
fn page_of(entry: &scatterlist) -> NonNull<bindings::page> {
    let page = entry.page_link & !VDMA_SG_PAGE_LINK_MASK;
    // SAFETY: Entries are made by `SgList::push` alone, which puts a page into each; the other bits
    // mark the end of a list.
    unsafe { NonNull::new_unchecked(page as *mut bindings::page) }
}

/// A list of pages. Has to stay in place while it is in a virtqueue.
///
/// # Invariants
///
/// `used` entries are there, at most `limit`, at the beginning of [`SgList::slots`], which are at
/// least `limit`. The pages of the entries are held, until the list is cleared or not used any
/// more.
pub(super) struct SgList {
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
    /// A list with space for no entries: [`SgList::clear`] is next.
    #[inline(always)]
    pub(super) const fn new() -> Self {
        // INVARIANT: There are no entries.
        Self {
            // An array that is uninitialized as a whole costs nothing, elements one by one a
            // memset.
            // SAFETY: Its elements need no initialization.
            inline: unsafe { MaybeUninit::uninit().assume_init() },
            spill: None,
            used: 0,
            limit: 0,
            bytes: 0,
        }
    }

    /// Removes all entries, and makes space for `limit`. May sleep.
    #[inline]
    pub(super) fn clear(&mut self, limit: usize) -> Result {
        // INVARIANT: There are no entries; their limit grows when there are slots.
        self.used = 0;
        self.bytes = 0;
        self.limit = 0;
        if limit > self.slots().len() {
            let mut spill = KVec::with_capacity(limit, GFP_KERNEL_ACCOUNT)?;
            // SAFETY: The capacity is `limit`, and the elements need no initialization.
            unsafe { spill.inc_len(limit) };
            self.spill = Some(spill);
        }
        self.limit = limit;
        Ok(())
    }

    #[inline]
    fn slots(&self) -> &[MaybeUninit<scatterlist>] {
        match &self.spill {
            None => &self.inline,
            Some(spill) => spill,
        }
    }

    #[inline]
    fn slots_mut(&mut self) -> &mut [MaybeUninit<scatterlist>] {
        match &mut self.spill {
            None => &mut self.inline,
            Some(spill) => spill,
        }
    }

    #[inline]
    fn entries(&self) -> &[scatterlist] {
        let first = self.slots().as_ptr().cast();
        // SAFETY: `used` entries are initialized, by the type's invariant.
        unsafe { slice::from_raw_parts(first, self.used) }
    }

    #[inline]
    fn entries_mut(&mut self) -> &mut [scatterlist] {
        let used = self.used;
        let first = self.slots_mut().as_mut_ptr().cast();
        // SAFETY: `used` entries are initialized, by the type's invariant.
        unsafe { slice::from_raw_parts_mut(first, used) }
    }

    /// Entries in the list.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.used
    }

    /// Further entries that the list has space for.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.limit - self.used
    }

    /// Bytes that the list covers.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends `length` bytes from `offset` on of the run of pages that begins with `page`.
    ///
    /// The bytes join the last entry when they follow it in physical memory at a page boundary and
    /// the entry stays within `max_entry` bytes. Bytes that continue inside a page do not join it:
    /// each entry holds one pin for every page it touches, and such a page has been pinned twice.
    ///
    /// # Safety
    ///
    /// The run has the bytes, less than 4 GiB, and its pages stay held as long as the list has a
    /// use for them. `max_entry` is less than 4 GiB.
    pub(super) unsafe fn push(
        &mut self,
        page: Page<'_>,
        offset: usize,
        length: usize,
        max_entry: usize,
    ) -> Result {
        if let Some(last) = self.entries_mut().last_mut() {
            let end = last.offset as usize + last.length as usize;
            let follows = offset == 0
                && end % PAGE_SIZE == 0
                && page_of(last).as_ptr().wrapping_add(end / PAGE_SIZE) == page.as_ptr();
            if follows && last.length as usize + length <= max_entry {
                last.length += length as u32;
                self.bytes += length;
                return Ok(());
            }
        }
        let (used, free) = (self.used, self.free());
        let slot = self.slots_mut().get_mut(used).filter(|_| free > 0);
        // What `sg_set_page` does, for loops over many.
        slot.ok_or(ENOSPC)?.write(scatterlist {
            page_link: page.as_ptr() as usize,
            offset: offset as u32,
            length: length as u32,
            ..Default::default()
        });
        // INVARIANT: The slot was initialized, and is below the limit; the caller vouches for the
        // pages.
        self.used += 1;
        self.bytes += length;
        Ok(())
    }

    /// Appends `bytes` bytes from `offset` on of `pages`, in as few entries as [`SgList::push`]
    /// allows.
    ///
    /// There has to be space for an entry for each page.
    ///
    /// # Safety
    ///
    /// The pages have the bytes, and stay held as long as the list has a use for them. `max_entry`
    /// is less than 4 GiB.
    pub(super) unsafe fn push_pages(
        &mut self,
        pages: &[Page<'_>],
        mut offset: usize,
        bytes: usize,
        max_entry: usize,
    ) -> Result {
        let mut left = bytes;
        let mut rest = pages;
        while let Some(&first) = rest.first() {
            let most = (max_entry / PAGE_SIZE).max(1);
            let mut count = 1;
            while count < most
                && rest
                    .get(count)
                    .is_some_and(|page| page.as_ptr() == first.as_ptr().wrapping_add(count))
            {
                count += 1;
            }
            let length = left.min(count * PAGE_SIZE - offset);
            // SAFETY: The pages are a run of `count`, as was found above; the caller vouches for
            // the rest.
            unsafe { self.push(first, offset, length, max_entry) }?;
            left -= length;
            offset = 0;
            // PANIC: `count` pages of `rest` were looked at.
            rest = &rest[count..];
        }
        Ok(())
    }

    /// The runs of pages that the entries touch.
    #[inline]
    pub(super) fn page_runs(&self) -> impl Iterator<Item = PageRun<'_>> {
        self.entries().iter().map(|entry| {
            let pages = (entry.offset as usize + entry.length as usize).div_ceil(PAGE_SIZE);
            // SAFETY: The pages that an entry touches are neighbours, for `push` was given runs,
            // and are held, by the type's invariant.
            unsafe { PageRun::new(Page::from_raw(page_of(entry)), pages) }
        })
    }

    /// The bytes of the list, page by page: the page, where they begin in it, and how many.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (Page<'_>, usize, usize)> {
        let runs = self.entries().iter().zip(self.page_runs());
        runs.flat_map(|(entry, run)| {
            let begin = entry.offset as usize;
            let end = begin + entry.length as usize;
            run.pages().enumerate().filter_map(move |(index, page)| {
                let from = begin.max(index * PAGE_SIZE);
                let to = end.min((index + 1) * PAGE_SIZE);
                (from < to).then(|| (page, from - index * PAGE_SIZE, to - from))
            })
        })
    }

    /// Bytes of each entry.
    pub(super) fn entry_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.entries().iter().map(|entry| entry.length as usize)
    }

    /// The list as a virtqueue takes it, or null when it is empty.
    #[inline]
    pub(super) fn terminate(&mut self) -> *mut scatterlist {
        let entries = self.entries_mut();
        let Some(last) = entries.last_mut() else {
            return core::ptr::null_mut();
        };
        last.page_link |= VDMA_SG_END;
        entries.as_mut_ptr()
    }
}
