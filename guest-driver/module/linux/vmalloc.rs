// SPDX-License-Identifier: GPL-2.0

//! Memory that is contiguous in virtual addresses only and that user space may map: `vmalloc_user`.

use core::{mem::size_of, ptr::NonNull, slice};

use kernel::{
    bindings, error::to_result, ffi::c_void, page::PAGE_SIZE, prelude::*, sync::atomic::Atomic,
    transmute::AsBytes,
};

use crate::linux::bindings::{
    VDMA_VM_WRITE, remap_vmalloc_range, vdma_vma_forbid_writing, vdma_vma_pgoff, vfree,
    vmalloc_user_noprof,
};

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// An area of zeroed memory, which the kernel accesses in atomic words only: user space may have it
/// mapped, and any task may write.
///
/// # Invariants
///
/// `address` comes from `vmalloc_user`, is not freed, and `length` bytes long, a multiple of the
/// page size.
pub(crate) struct VmallocArea {
    address: NonNull<c_void>,
    length: usize,
}

// SAFETY: The memory is the kernel's, and `vfree` may be called by any task.
unsafe impl Send for VmallocArea {}
// SAFETY: A shared reference gives access to atomics only.
unsafe impl Sync for VmallocArea {}

impl VmallocArea {
    /// At least `length` bytes. May sleep.
    pub(crate) fn new(length: usize) -> Result<Self> {
        let length = length.checked_next_multiple_of(PAGE_SIZE).ok_or(EINVAL)?;
        // SAFETY: Any size may be passed.
        let memory = unsafe { vmalloc_user_noprof(length) };
        let address = NonNull::new(memory).ok_or(ENOMEM)?;
        // INVARIANT: Allocated above, with a length that was rounded up to whole pages.
        Ok(Self { address, length })
    }

    /// `count` words from byte `offset` on; `None` for an offset that is not a multiple of eight,
    /// or beyond the end.
    pub(crate) fn words(&self, offset: usize, count: usize) -> Option<&[Atomic<u64>]> {
        let end = count.checked_mul(WORD)?.checked_add(offset)?;
        if offset % WORD != 0 || end > self.length {
            return None;
        }
        let first = self.address.as_ptr().wrapping_byte_add(offset);
        // SAFETY: The words are inside of the area, by the type's invariant and the check above,
        // aligned as the area begins at a page, and initialized to zero; they live as long as
        // `self`. The kernel has no other kind of reference to them, and an `Atomic` has the layout
        // of its number.
        Some(unsafe { slice::from_raw_parts(first.cast::<Atomic<u64>>(), count) })
    }

    /// Writes `value` to the words from byte `offset` on, but the first `skip` words of it;
    /// `EINVAL` where [`Self::words`] has none. Each word is written at once, the whole is not. Any
    /// context.
    pub(crate) fn write<T: AsBytes>(&self, offset: usize, value: &T, skip: usize) -> Result {
        const { assert!(size_of::<T>() % WORD == 0) };
        let words = self.words(offset, size_of::<T>() / WORD).ok_or(EINVAL)?;
        let bytes = value.as_bytes().chunks_exact(WORD);
        for (word, bytes) in words.iter().zip(bytes).skip(skip) {
            let mut value = [0; WORD];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), kernel::sync::atomic::Relaxed);
        }
        Ok(())
    }

    /// Fills `vma` with the area, for reading: `EPERM` for a mapping that may be written to,
    /// `EINVAL` for another size or offset. May sleep.
    ///
    /// # Safety
    ///
    /// `vma` is the argument of `->mmap`, during that call.
    pub(super) unsafe fn map(&self, vma: *mut bindings::vm_area_struct) -> Result {
        // SAFETY: The caller vouches for the mapping; both views of the union hold the flags.
        let flags = unsafe { (*vma).__bindgen_anon_2.vm_flags };
        if flags & VDMA_VM_WRITE != 0 {
            return Err(EPERM);
        }
        // SAFETY: The caller vouches for the mapping, which is not in use yet.
        let offset = unsafe {
            vdma_vma_forbid_writing(vma);
            vdma_vma_pgoff(vma)
        };
        // SAFETY: The caller vouches for the mapping. The memory comes from `vmalloc_user`, by the
        // type's invariant; the function checks the range, and has the mapping hold each page.
        to_result(unsafe { remap_vmalloc_range(vma, self.address.as_ptr(), offset) })
    }
}

impl Drop for VmallocArea {
    fn drop(&mut self) {
        // SAFETY: The memory comes from `vmalloc_user`, by the type's invariant, and is referenced
        // by mappings at most, which hold its pages. Any context will do.
        unsafe { vfree(self.address.as_ptr()) }
    }
}
