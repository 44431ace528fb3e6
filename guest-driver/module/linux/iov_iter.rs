// SPDX-License-Identifier: GPL-2.0

//! The memory that a caller gave: `struct iov_iter`.

use core::{marker::PhantomData, mem::MaybeUninit, slice};

use kernel::{bindings, page::PAGE_SIZE, prelude::*, types::Opaque};

use crate::linux::{
    bindings::{
        vdma_iov_iter_count, vdma_iov_iter_truncate, vdma_iov_iter_will_pin, vdma_task_has_memory,
    },
    page::Page,
    scatterlist::SgList,
};

/// Pages that are extracted at a time; their pointers are on the stack.
const BATCH: usize = 32;

/// What happens to the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum IterDirection {
    /// It is read: `ITER_SOURCE`.
    Source,
    /// It is written: `ITER_DEST`.
    Dest,
}

/// The memory that a caller of read, write or a command gave, for the duration of the call.
///
/// # Invariants
///
/// `raw` is valid, and used by this object alone, for `'a`. `taken` bytes were extracted by this
/// object and not given back.
pub(crate) struct IovIter<'a> {
    raw: *mut bindings::iov_iter,
    taken: usize,
    _call: PhantomData<&'a mut bindings::iov_iter>,
}

impl IovIter<'_> {
    /// # Safety
    ///
    /// `raw` is valid, and nothing else uses it, for as long as the result lives.
    #[inline]
    pub(super) unsafe fn from_raw(raw: *mut bindings::iov_iter) -> Self {
        // INVARIANT: The caller vouches for `raw`; nothing was taken yet.
        Self {
            raw,
            taken: 0,
            _call: PhantomData,
        }
    }

    /// Bytes that are left.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_iov_iter_count(self.raw) }
    }

    /// Shortens the memory to `len` bytes, if it is longer.
    pub(crate) fn truncate(&mut self, len: usize) {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_iov_iter_truncate(self.raw, len) }
    }

    /// Upper bound, up to `limit`, for the pages that the rest of the memory touches.
    #[inline]
    pub(crate) fn page_bound(&self, limit: usize) -> usize {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        // SAFETY: Valid by the type's invariant.
        let pages = unsafe { bindings::iov_iter_npages(self.raw, limit) };
        usize::try_from(pages).unwrap_or(0)
    }

    /// Whether the pages are a user's, and so have to be pinned. Other pages (registered io_uring
    /// buffers, pipes) stay with their owner, who keeps them until the call completes.
    #[inline]
    pub(crate) fn will_pin(&self) -> bool {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_iov_iter_will_pin(self.raw) }
    }

    /// Whether the memory may be written to.
    #[inline]
    pub(crate) fn is_dest(&self) -> bool {
        // SAFETY: Valid by the type's invariant.
        unsafe { !(*self.raw).data_source }
    }

    /// Copies `bytes` to the memory; returns how many there was memory for. May sleep.
    pub(crate) fn copy_to(&mut self, bytes: &[u8]) -> usize {
        if !self.is_dest() {
            return 0;
        }
        // SAFETY: Both are valid, and the function copies no more than the iterator has space for.
        unsafe { bindings::_copy_to_iter(bytes.as_ptr().cast(), bytes.len(), self.raw) }
    }

    /// Fills `bytes` from the memory; returns how many there was memory for. May sleep.
    pub(crate) fn copy_from(&mut self, bytes: &mut [u8]) -> usize {
        if self.is_dest() {
            return 0;
        }
        // SAFETY: Both are valid, and as long as is said.
        unsafe { bindings::_copy_from_iter(bytes.as_mut_ptr().cast(), bytes.len(), self.raw) }
    }

    /// Takes pages off the memory, pins them where that is needed, and appends them to `list`,
    /// until `max_bytes` are there, the list is full or the memory is used up. Returns the pages
    /// taken. May sleep (page faults).
    ///
    /// `EFAULT` where the memory cannot be pinned; what `list` holds by then stays pinned.
    ///
    /// # Safety
    ///
    /// The pages are unpinned, if [`Self::will_pin`], when `list` has no use for them any more, and
    /// not before. Otherwise the list is used only until the call is completed.
    pub(super) unsafe fn extract_into(
        &mut self,
        list: &mut SgList,
        max_bytes: usize,
        max_entry: usize,
    ) -> Result<usize> {
        let mut taken_pages = 0;
        while list.bytes() < max_bytes && list.free() > 0 && self.len() > 0 {
            let mut batch = [const { MaybeUninit::<*mut bindings::page>::uninit() }; BATCH];
            let mut pages = batch.as_mut_ptr().cast();
            let mut offset = 0;
            // SAFETY: The iterator is valid; `pages` points at memory for as many pointers as are
            // asked for, so that the function does not allocate.
            let taken = unsafe {
                bindings::iov_iter_extract_pages(
                    self.raw,
                    &mut pages,
                    max_bytes - list.bytes(),
                    BATCH.min(list.free()) as u32,
                    0,
                    &mut offset,
                )
            };
            let bytes = match taken {
                1.. => taken as usize,
                0 => return Err(EFAULT),
                error => return Err(Error::from_errno(error as i32)),
            };
            // INVARIANT: The function has taken these bytes off.
            self.taken += bytes;
            let count = (offset + bytes).div_ceil(PAGE_SIZE);
            // SAFETY: The function filled in the pages behind the bytes that it took, at most
            // `BATCH`. A `Page` is such a pointer, to a page that is pinned or kept by its owner
            // while this is used.
            let pages = unsafe { slice::from_raw_parts(batch.as_ptr().cast::<Page<'_>>(), count) };
            // SAFETY: The caller sees to it that the pages stay for as long as the list has a use
            // for them.
            unsafe { list.push_pages(pages, offset, bytes, max_entry) }?;
            taken_pages += count;
        }
        Ok(taken_pages)
    }

    /// Gives the last `bytes` that were taken back to the iterator, after a failure: at most as
    /// many as have been taken since the call began.
    pub(crate) fn revert(&mut self, bytes: usize) {
        let bytes = bytes.min(self.taken);
        // INVARIANT: They are given back below.
        self.taken -= bytes;
        // SAFETY: Valid by the type's invariant, by which at least these bytes have been taken off.
        unsafe { bindings::iov_iter_revert(self.raw, bytes) }
    }
}

/// A place for the iterator over a range of the current task's memory.
pub(crate) struct UserRange(Opaque<bindings::iov_iter>);

impl UserRange {
    pub(crate) fn new() -> Self {
        Self(Opaque::uninit())
    }

    /// Sets the iterator to `length` bytes at `address`, or as many as the kernel takes at a time
    /// (a page less than 2 GiB). `EFAULT` for addresses that are not user space's, and in a task
    /// that has no memory of a user.
    pub(crate) fn set(
        &mut self,
        direction: IterDirection,
        address: u64,
        length: usize,
    ) -> Result<IovIter<'_>> {
        let direction = match direction {
            IterDirection::Source => bindings::ITER_SOURCE,
            IterDirection::Dest => bindings::ITER_DEST,
        };
        let address = usize::try_from(address).map_err(|_| EFAULT)?;
        // SAFETY: No precondition.
        if !unsafe { vdma_task_has_memory() } {
            return Err(EFAULT);
        }
        // SAFETY: The iterator is valid for writes; any range may be given.
        kernel::error::to_result(unsafe {
            bindings::import_ubuf(direction as i32, address as *mut _, length, self.0.get())
        })?;
        // SAFETY: The iterator was initialized, and is borrowed for as long as the result lives.
        Ok(unsafe { IovIter::from_raw(self.0.get()) })
    }
}
