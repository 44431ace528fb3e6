// SPDX-License-Identifier: GPL-2.0

//! Pages of memory that are held for a while, and runs of them: `struct page`.

use core::{marker::PhantomData, ptr::NonNull};

use kernel::{bindings, page::PAGE_SIZE};

use crate::linux::bindings::{
    crc32c, vdma_page_address, vdma_page_is_anonymous, vdma_page_is_huge, vdma_page_to_phys,
};

/// A page that stays where it is, and is not freed, for `'a`.
///
/// Its bytes may change at any time: the user that it belongs to and the device write to them.
///
/// # Invariants
///
/// `raw` is the `struct page` of a frame in the direct map or of high memory, and for `'a` there is
/// a reference to the page, a pin, or an owner that has promised to keep it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Page<'a> {
    raw: NonNull<bindings::page>,
    _holder: PhantomData<&'a ()>,
}

impl<'a> Page<'a> {
    /// # Safety
    ///
    /// `raw` is as the type's invariant says, for `'a`.
    #[inline]
    pub(super) unsafe fn from_raw(raw: NonNull<bindings::page>) -> Self {
        // INVARIANT: The caller vouches for it.
        Self {
            raw,
            _holder: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::page {
        self.raw.as_ptr()
    }

    /// Address of the frame in physical memory.
    #[inline]
    pub(crate) fn physical_address(self) -> u64 {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_page_to_phys(self.as_ptr()) }
    }

    /// Address of the frame in the kernel's direct map; `None` for one that is not there.
    pub(crate) fn kernel_address(self) -> Option<usize> {
        // SAFETY: Valid by the type's invariant.
        let address = unsafe { vdma_page_address(self.as_ptr()) };
        (!address.is_null()).then_some(address as usize)
    }

    /// Whether the page is part of a huge one.
    pub(crate) fn is_huge(self) -> bool {
        // SAFETY: Valid and held, by the type's invariant.
        unsafe { vdma_page_is_huge(self.as_ptr()) }
    }

    /// Whether the page belongs to no file.
    pub(crate) fn is_anonymous(self) -> bool {
        // SAFETY: Valid and held, by the type's invariant.
        unsafe { vdma_page_is_anonymous(self.as_ptr()) }
    }

    /// Runs `f` with the address of the bytes in the kernel's address space, wherever the page is
    /// (`kmap_local_page`). Any context.
    fn with_mapping<R>(self, f: impl FnOnce(*mut u8) -> R) -> R {
        // SAFETY: Valid and held, by the type's invariant.
        let address = unsafe { bindings::kmap_local_page(self.as_ptr()) };
        let result = f(address.cast());
        // SAFETY: The page was mapped above, by this task, and what `f` mapped has been unmapped,
        // for it does so in this function as well.
        unsafe { bindings::kunmap_local(address) };
        result
    }

    /// Continues the CRC32C `crc` over `length` bytes from `offset` on, as far as the page has
    /// them. Any context.
    pub(crate) fn crc32c(self, crc: u32, offset: usize, length: usize) -> u32 {
        let offset = offset.min(PAGE_SIZE);
        let length = length.min(PAGE_SIZE - offset);
        self.with_mapping(|bytes| {
            // SAFETY: The bytes are inside of the page, which is mapped. That others may write
            // meanwhile gives another checksum, no more: the function reads each byte once.
            unsafe { crc32c(crc, bytes.wrapping_add(offset).cast(), length) }
        })
    }

    /// Copies `length` bytes at `offset` to the same place in `to`, as far as a page has them. Any
    /// context.
    ///
    /// # Safety
    ///
    /// The bytes of `to` may be written to: no reference to them exists.
    pub(super) unsafe fn copy_to(self, to: Page<'_>, offset: usize, length: usize) {
        let offset = offset.min(PAGE_SIZE);
        let length = length.min(PAGE_SIZE - offset);
        self.with_mapping(|from| {
            to.with_mapping(|to| {
                let (from, to) = (from.wrapping_add(offset), to.wrapping_add(offset));
                // SAFETY: The bytes are inside of pages that are mapped, and the caller vouches for
                // those that are written. `copy` allows for both being the same page.
                unsafe { core::ptr::copy(from, to, length) };
            });
        });
    }
}

/// Pages that are neighbours in physical memory.
///
/// # Invariants
///
/// The `count` pages from `first` on are all as the invariant of [`Page`] says.
#[derive(Clone, Copy)]
pub(crate) struct PageRun<'a> {
    first: Page<'a>,
    count: usize,
}

impl<'a> PageRun<'a> {
    /// # Safety
    ///
    /// `count` pages from `first` on are held for `'a`, and have neighbouring frames.
    #[inline]
    pub(super) unsafe fn new(first: Page<'a>, count: usize) -> Self {
        // INVARIANT: The caller vouches for it.
        Self { first, count }
    }

    #[inline]
    pub(crate) fn len(self) -> usize {
        self.count
    }

    /// The page with this number.
    #[inline]
    pub(crate) fn get(self, index: usize) -> Option<Page<'a>> {
        if index >= self.count {
            return None;
        }
        // SAFETY: The page is one of the run, by the check above and the type's invariant.
        Some(unsafe { Page::from_raw(self.first.raw.add(index)) })
    }

    /// The pages.
    pub(crate) fn pages(self) -> impl Iterator<Item = Page<'a>> {
        (0..self.count).filter_map(move |index| self.get(index))
    }

    #[inline]
    pub(crate) fn as_ptr(self) -> *mut bindings::page {
        self.first.as_ptr()
    }
}
