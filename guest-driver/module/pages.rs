// SPDX-License-Identifier: GPL-2.0

//! Pinning the pages behind a caller's buffers, and letting them go.

use crate::{
    bindings::{
        vdma_iov_iter_count, vdma_iov_iter_truncate, vdma_iov_iter_will_pin, vdma_pages_are_dirty,
        vdma_pages_mark_dirty,
    },
    scatterlist::SgList,
};
use core::{marker::PhantomData, ptr};
use kernel::{bindings, page::PAGE_SIZE, prelude::*};

/// Pages that one call of [`Buffers::pin_into`] takes at a time; their pointers are on the stack.
const BATCH: usize = 32;

/// A page frame, named by its `struct page`. Says nothing of who owns the frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page(*mut bindings::page);

impl Page {
    /// # Safety
    ///
    /// `page` is the `struct page` of a frame.
    pub(crate) unsafe fn from_ptr(page: *mut bindings::page) -> Self {
        Self(page)
    }

    pub(crate) fn as_ptr(self) -> *mut bindings::page {
        self.0
    }
}

/// The memory that a caller of read or write gave: a `struct iov_iter`, which ends with the call.
pub(crate) struct Buffers<'a> {
    raw: *mut bindings::iov_iter,
    _call: PhantomData<&'a mut bindings::iov_iter>,
}

impl Buffers<'_> {
    /// # Safety
    ///
    /// `raw` is valid, and nobody else uses it, for as long as the result lives.
    pub(crate) unsafe fn from_raw(raw: *mut bindings::iov_iter) -> Self {
        Self { raw, _call: PhantomData }
    }

    /// Bytes that are left.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_iov_iter_count(self.raw) }
    }

    /// Shortens the buffers to `len` bytes, if they are longer.
    pub(crate) fn truncate(&mut self, len: usize) {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_iov_iter_truncate(self.raw, len) }
    }

    /// Upper bound, up to `limit`, for the pages that the rest of the buffers touches.
    pub(crate) fn page_bound(&self, limit: usize) -> usize {
        // SAFETY: Valid by the type's invariant.
        let pages = unsafe { bindings::iov_iter_npages(self.raw, limit as i32) };
        usize::try_from(pages).unwrap_or(0)
    }

    /// Whether the pages are a user's, and so have to be pinned. Pages of other buffers (registered
    /// io_uring buffers, pipes) stay with their owner, who keeps them until the call completes.
    pub(crate) fn will_pin(&self) -> bool {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_iov_iter_will_pin(self.raw) }
    }

    /// Takes pages off the buffers, pins them where that is needed, and appends them to `list`, until
    /// `max_bytes` are there, the list is full or the buffers are used up. Returns the bytes taken
    /// and the pages pinned. May sleep (page faults).
    ///
    /// `EFAULT` where the memory cannot be pinned; what `list` holds by then stays pinned.
    fn pin_into(&mut self, list: &mut SgList, max_bytes: usize, max_entry: usize) -> Result<usize> {
        let mut taken_pages = 0;
        while list.bytes() < max_bytes && list.room() > 0 && self.len() > 0 {
            let mut batch = [ptr::null_mut::<bindings::page>(); BATCH];
            let mut pages = batch.as_mut_ptr();
            let mut offset = 0;
            // SAFETY: The iterator is valid; `pages` points at room for as many pointers as are asked
            // for, so that the function does not allocate.
            let taken = unsafe {
                bindings::iov_iter_extract_pages(
                    self.raw,
                    &mut pages,
                    max_bytes - list.bytes(),
                    BATCH.min(list.room()) as u32,
                    0,
                    &mut offset,
                )
            };
            let mut left = match taken {
                1.. => taken as usize,
                0 => return Err(EFAULT),
                error => return Err(Error::from_errno(error as i32)),
            };
            for page in batch {
                if left == 0 {
                    break;
                }
                let length = left.min(PAGE_SIZE - offset);
                // SAFETY: The function filled in the pages behind the bytes that it took.
                let page = unsafe { Page::from_ptr(page) };
                list.push(page, offset, length, max_entry)?;
                left -= length;
                offset = 0;
                taken_pages += 1;
            }
        }
        Ok(taken_pages)
    }

    /// Gives `bytes` that were taken back to the buffers, after a failure.
    pub(crate) fn revert(&mut self, bytes: usize) {
        // SAFETY: Valid by the type's invariant; callers give back what they took in this call.
        unsafe { bindings::iov_iter_revert(self.raw, bytes) }
    }
}

/// Pages in a scatter-gather list, held until this is dropped: pinned (`FOLL_PIN`) if they are a
/// user's, otherwise held by their owner.
///
/// Dropping unpins, which is allowed in any context, for it takes no folio lock.
pub(crate) struct HeldPages {
    list: SgList,
    pinned: bool,
    pages: usize,
}

impl HeldPages {
    /// No pages.
    pub(crate) fn none() -> Result<Self> {
        Ok(Self { list: SgList::with_room(0)?, pinned: false, pages: 0 })
    }

    /// Takes up to `max_bytes` off `buffers`, in up to `max_entries` entries of up to `max_entry`
    /// bytes. May sleep.
    pub(crate) fn take(
        buffers: &mut Buffers<'_>,
        max_bytes: usize,
        max_entries: usize,
        max_entry: usize,
    ) -> Result<Self> {
        let list = SgList::with_room(buffers.page_bound(max_entries))?;
        let mut held = Self { list, pinned: buffers.will_pin(), pages: 0 };
        match buffers.pin_into(&mut held.list, max_bytes, max_entry) {
            Ok(pages) => held.pages = pages,
            // What came before the bad address is a request of its own; the error comes back with
            // the next, which begins there.
            Err(_) if held.list.bytes() > 0 => held.pages = held.count_pages(),
            Err(error) => return Err(error),
        }
        Ok(held)
    }

    fn count_pages(&self) -> usize {
        self.list.page_runs().map(|(_, count)| count).sum()
    }

    /// Bytes that the pages cover.
    pub(crate) fn bytes(&self) -> usize {
        self.list.bytes()
    }

    /// Pages that are pinned here.
    pub(crate) fn pinned_pages(&self) -> usize {
        if self.pinned {
            self.pages
        } else {
            0
        }
    }

    /// Scatter-gather entries.
    pub(crate) fn entries(&self) -> usize {
        self.list.len()
    }

    /// The list as the virtqueue wants it.
    pub(crate) fn sg_list(&mut self) -> *mut bindings::scatterlist {
        self.list.terminate()
    }

    /// Marks the pages dirty, for the device is about to write, or has written, to them. May sleep
    /// (folio locks).
    pub(crate) fn mark_dirty(&self) {
        if self.pinned {
            for (page, count) in self.list.page_runs() {
                // SAFETY: The pages are pinned by this object.
                unsafe { vdma_pages_mark_dirty(page.as_ptr(), count) };
            }
        }
    }

    /// Whether all pages are (still) marked dirty. Any context.
    pub(crate) fn are_dirty(&self) -> bool {
        !self.pinned
            || self.list.page_runs().all(|(page, count)| {
                // SAFETY: The pages are pinned by this object.
                unsafe { vdma_pages_are_dirty(page.as_ptr(), count) }
            })
    }
}

impl Drop for HeldPages {
    fn drop(&mut self) {
        if !self.pinned {
            return;
        }
        for (page, count) in self.list.page_runs() {
            // SAFETY: Each entry holds one pin for each page that it touches, and the device is done
            // with them: requests drop their pages only when they are in no queue. Without the last
            // argument no lock is taken.
            unsafe { bindings::unpin_user_page_range_dirty_lock(page.as_ptr(), count, false) };
        }
    }
}
