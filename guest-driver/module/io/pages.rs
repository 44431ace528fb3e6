// SPDX-License-Identifier: GPL-2.0

//! The pages of a request: pinned, lent by their owner, or those of a buffer.

use core::{marker::PhantomData, mem::MaybeUninit, slice};

use kernel::{bindings, page::PAGE_SIZE, prelude::*, sync::Arc};

use crate::{
    io::{
        bounce::{Bounced, Reach},
        deferred,
    },
    linux::{
        bindings::{
            crc32c, vdma_get_page, vdma_iov_iter_count, vdma_iov_iter_truncate,
            vdma_iov_iter_will_pin, vdma_page_address, vdma_page_is_anonymous, vdma_page_is_huge,
            vdma_page_to_phys, vdma_pages_are_dirty, vdma_pages_mark_dirty, vdma_put_page,
        },
        scatterlist::SgList,
    },
    operations::buffer::Buffer,
};

/// Pages that one call of [`Buffers::pin_into`] takes at a time; their pointers are on the stack.
const BATCH: usize = 32;

/// A page frame, named by its `struct page`. Says nothing of who owns the frame.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
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

    /// The page of the frame that is `count` frames further on, in a run of pages that has it.
    pub(crate) fn nth(self, count: usize) -> Self {
        Self(self.0.wrapping_add(count))
    }

    /// The first `count` pages of a run that begins with this one.
    pub(crate) fn run(self, count: usize) -> impl Iterator<Item = Self> {
        (0..count).map(move |index| self.nth(index))
    }

    /// Whether `next` follows the run of `count` pages that begins with this one.
    pub(crate) fn is_followed_by(self, count: usize, next: Self) -> bool {
        self.nth(count) == next
    }

    /// Takes a reference, which [`Page::put`] gives back.
    pub(crate) fn get(self) {
        // SAFETY: Whoever has the page here holds it.
        unsafe { vdma_get_page(self.0) }
    }

    /// Gives a reference back that the caller has: the last one frees the page. Any context.
    pub(crate) fn put(self) {
        // SAFETY: The caller has a reference, and gives it up.
        unsafe { vdma_put_page(self.0) }
    }

    /// Address of the frame in physical memory.
    pub(crate) fn physical_address(self) -> u64 {
        // SAFETY: Any page has a frame.
        unsafe { vdma_page_to_phys(self.0) }
    }

    /// Address of the frame in the kernel's direct map, 0 for one that is not there.
    pub(crate) fn kernel_address(self) -> usize {
        // SAFETY: Any page may be asked.
        unsafe { vdma_page_address(self.0) as usize }
    }

    /// Whether the page is part of a huge one. The caller holds the page.
    pub(crate) fn is_huge(self) -> bool {
        // SAFETY: The page is held.
        unsafe { vdma_page_is_huge(self.0) }
    }

    /// Whether the page belongs to no file. The caller holds the page.
    pub(crate) fn is_anonymous(self) -> bool {
        // SAFETY: The page is held.
        unsafe { vdma_page_is_anonymous(self.0) }
    }

    /// Lets the CPU at the bytes of the page, wherever it is (`kmap_local_page`). Any context. Others
    /// (the page's user, the device) may access them at the same time.
    ///
    /// # Safety
    ///
    /// The caller holds the page; `offset + length` is at most the page size.
    pub(crate) unsafe fn with_bytes<R>(
        self,
        offset: usize,
        length: usize,
        f: impl FnOnce(*mut u8, usize) -> R,
    ) -> R {
        // SAFETY: The page is held. Mappings are undone in the reverse order, by this task.
        let address = unsafe { bindings::kmap_local_page(self.0) };
        let result = f(address.cast::<u8>().wrapping_add(offset), length);
        // SAFETY: It was mapped above.
        unsafe { bindings::kunmap_local(address) };
        result
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
        Self {
            raw,
            _call: PhantomData,
        }
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

    /// Copies `bytes` to the buffers; returns how many there was memory for. May sleep.
    pub(crate) fn copy_to(&mut self, bytes: &[u8]) -> usize {
        // SAFETY: Both are valid; no more bytes are left in the buffers than are copied to them.
        unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), self.raw) }
    }

    /// Fills `bytes` from the buffers; returns how many there was memory for. May sleep.
    pub(crate) fn copy_from(&mut self, bytes: &mut [u8]) -> usize {
        // SAFETY: Both are valid.
        unsafe { bindings::_copy_from_iter(bytes.as_mut_ptr().cast(), bytes.len(), self.raw) }
    }

    /// Takes pages off the buffers, pins them where that is needed, and appends them to `list`, until
    /// `max_bytes` are there, the list is full or the buffers are used up. Returns the pages
    /// taken. May sleep (page faults).
    ///
    /// `EFAULT` where the memory cannot be pinned; what `list` holds by then stays pinned.
    fn pin_into(&mut self, list: &mut SgList, max_bytes: usize, max_entry: usize) -> Result<usize> {
        let mut taken_pages = 0;
        while list.bytes() < max_bytes && list.room() > 0 && self.len() > 0 {
            let mut batch = [const { MaybeUninit::<*mut bindings::page>::uninit() }; BATCH];
            let mut pages = batch.as_mut_ptr().cast();
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
            let bytes = match taken {
                1.. => taken as usize,
                0 => return Err(EFAULT),
                error => return Err(Error::from_errno(error as i32)),
            };
            let count = (offset + bytes).div_ceil(PAGE_SIZE);
            // SAFETY: The function filled in the pages behind the bytes that it took, at most `BATCH`; a
            // `Page` is such a pointer.
            let pages = unsafe { slice::from_raw_parts(batch.as_ptr().cast::<Page>(), count) };
            list.push_pages(pages, offset, bytes, max_entry)?;
            taken_pages += count;
        }
        Ok(taken_pages)
    }

    /// Gives `bytes` that were taken back to the buffers, after a failure.
    pub(crate) fn revert(&mut self, bytes: usize) {
        // SAFETY: Valid by the type's invariant; callers give back what they took in this call.
        unsafe { bindings::iov_iter_revert(self.raw, bytes) }
    }
}

/// Why pages stay where they are while the device uses them.
enum Hold {
    /// Their owner sees to it until the call completes.
    Lent,
    /// They are pinned (`FOLL_PIN`): so many.
    Pinned(usize),
    /// They are part of a buffer. Always there, but when the last of this is dropped.
    Buffer(Option<Arc<Buffer>>),
}

/// Pages in a scatter-gather list, held until this is dropped.
///
/// Dropping is allowed in any context, for it takes no folio lock.
pub(crate) struct HeldPages {
    list: SgList,
    hold: Hold,
    /// What the device gets instead, where it cannot reach the pages.
    bounced: Option<KBox<Bounced>>,
}

impl HeldPages {
    /// No pages.
    #[inline(always)]
    pub(crate) const fn none() -> Self {
        Self {
            list: SgList::new(),
            hold: Hold::Lent,
            bounced: None,
        }
    }

    /// Takes up to `max_bytes` off `buffers`, in up to `entries` entries of up to `max_entry` bytes. To
    /// be called once: there are no pages here yet. May sleep.
    ///
    /// Room is made for all of `entries`, so it should be no more than [`Buffers::page_bound`].
    pub(crate) fn take(
        &mut self,
        buffers: &mut Buffers<'_>,
        max_bytes: usize,
        entries: usize,
        max_entry: usize,
    ) -> Result {
        self.list.make_room(entries)?;
        let pins = buffers.will_pin();
        if pins {
            // What is taken before an error is unpinned as well.
            self.hold = Hold::Pinned(0);
        }
        let taken = buffers.pin_into(&mut self.list, max_bytes, max_entry);
        let pages = match taken {
            Ok(pages) => pages,
            // What came before the bad address is a request of its own; the error comes back with
            // the next, which begins there.
            Err(_) if self.list.bytes() > 0 => self.pages(),
            Err(error) => return Err(error),
        };
        if pins {
            self.hold = Hold::Pinned(pages);
        }
        Ok(())
    }

    /// Takes the pages behind up to `max_bytes` of `buffer` from `offset` on, with limits as for
    /// [`HeldPages::take`]. To be called once as well. May sleep.
    pub(crate) fn take_of(
        &mut self,
        buffer: &Arc<Buffer>,
        offset: usize,
        max_bytes: usize,
        max_entries: usize,
        max_entry: usize,
    ) -> Result {
        buffer.append_to(&mut self.list, offset, max_bytes, max_entries, max_entry)?;
        self.hold = Hold::Buffer(Some(buffer.clone()));
        Ok(())
    }

    /// Puts pages that the device can reach in the place of those that it cannot; with `outgoing`, the
    /// bytes that the device is to read are copied there. May sleep.
    pub(crate) fn bring_within(&mut self, reach: Reach, outgoing: bool) -> Result {
        if reach.is_everywhere() {
            return Ok(());
        }
        self.bounced = Bounced::new(&self.list, reach)?;
        if let Some(bounced) = self.bounced.as_ref().filter(|_| outgoing) {
            // SAFETY: The pages are held by this object.
            unsafe { bounced.copy_out() };
        }
        Ok(())
    }

    /// Copies what the device has written where it belongs, if it wrote elsewhere. Any context.
    pub(crate) fn fetch_bounced(&self) {
        if let Some(bounced) = &self.bounced {
            // SAFETY: The pages are held by this object.
            unsafe { bounced.copy_in() };
        }
    }

    /// Bytes that the pages cover.
    pub(crate) fn bytes(&self) -> usize {
        self.list.bytes()
    }

    /// Pages that are pinned here.
    pub(crate) fn pinned_pages(&self) -> usize {
        match self.hold {
            Hold::Pinned(pages) => pages,
            _ => 0,
        }
    }

    /// Pages that are copied because the device cannot reach them.
    pub(crate) fn bounced_pages(&self) -> usize {
        self.bounced.as_ref().map_or(0, |bounced| bounced.pages())
    }

    /// Pages of the data.
    pub(crate) fn pages(&self) -> usize {
        self.list.page_runs().map(|(_, count)| count).sum()
    }

    /// Scatter-gather entries.
    pub(crate) fn entries(&self) -> usize {
        self.list.len()
    }

    /// The list of the pages themselves.
    pub(crate) fn list(&self) -> &SgList {
        &self.list
    }

    /// The list as the virtqueue wants it.
    pub(crate) fn sg_list(&mut self) -> *mut bindings::scatterlist {
        match &mut self.bounced {
            Some(bounced) => bounced.sg_list(),
            None => self.list.terminate(),
        }
    }

    fn is_pinned(&self) -> bool {
        matches!(self.hold, Hold::Pinned(_))
    }

    /// Marks the pages dirty, for the device is about to write, or has written, to them. May sleep
    /// (folio locks).
    pub(crate) fn mark_dirty(&self) {
        if self.is_pinned() {
            for (page, count) in self.list.page_runs() {
                // SAFETY: The pages are pinned by this object.
                unsafe { vdma_pages_mark_dirty(page.as_ptr(), count) };
            }
        }
    }

    /// Whether all pages are (still) marked dirty. Any context.
    pub(crate) fn are_dirty(&self) -> bool {
        !self.is_pinned()
            || self.list.page_runs().all(|(page, count)| {
                // SAFETY: The pages are pinned by this object.
                unsafe { vdma_pages_are_dirty(page.as_ptr(), count) }
            })
    }

    /// The CRC32C of the bytes, read by the CPU. Any context.
    pub(crate) fn crc32c(&self) -> u32 {
        let mut crc = !0;
        for (page, offset, length) in self.list.pieces() {
            // SAFETY: The pages are held by this object, and the piece is inside of its page.
            unsafe {
                page.with_bytes(offset, length, |bytes, length| {
                    crc = crc32c(crc, bytes.cast(), length);
                })
            };
        }
        !crc
    }
}

impl Drop for HeldPages {
    fn drop(&mut self) {
        match &mut self.hold {
            Hold::Lent => {}
            Hold::Pinned(_) => {
                for (page, count) in self.list.page_runs() {
                    // SAFETY: Each entry holds one pin for each page that it touches, and the device
                    // is done with them: requests drop their pages only when they are in no queue.
                    // Without the last argument no lock is taken.
                    unsafe {
                        bindings::unpin_user_page_range_dirty_lock(page.as_ptr(), count, false)
                    };
                }
            }
            Hold::Buffer(buffer) => {
                if let Some(buffer) = buffer.take() {
                    deferred::release(buffer);
                }
            }
        }
    }
}
