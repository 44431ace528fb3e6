// SPDX-License-Identifier: GPL-2.0

//! User mappings of device memory, and the address space that finds them all again.

use crate::bindings::{vdma_io_remap_pfn_range, vdma_vma_pgoff, VDMA_VM_MAYSHARE};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{bindings, page::PAGE_SIZE, prelude::*, sync::Mutex};

/// A mapping that is being made: `struct vm_area_struct` inside of `->mmap`.
pub(crate) struct NewMapping<'a> {
    raw: NonNull<bindings::vm_area_struct>,
    _call: PhantomData<&'a mut bindings::vm_area_struct>,
}

impl NewMapping<'_> {
    /// # Safety
    ///
    /// `raw` is the argument of `->mmap`, and the result ends with that call.
    pub(crate) unsafe fn from_raw(raw: *mut bindings::vm_area_struct) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, _call: PhantomData })
    }

    fn vma(&self) -> &bindings::vm_area_struct {
        // SAFETY: Valid, and not changed by others, during `->mmap`.
        unsafe { self.raw.as_ref() }
    }

    fn start(&self) -> usize {
        // SAFETY: Both views of the union hold the start.
        unsafe { self.vma().__bindgen_anon_1.__bindgen_anon_1.vm_start }
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: As in `start`.
        let end = unsafe { self.vma().__bindgen_anon_1.__bindgen_anon_1.vm_end };
        end - self.start()
    }

    /// Offset in the file at which the mapping begins, in bytes; `None` when it overflows.
    pub(crate) fn offset(&self) -> Option<u64> {
        // SAFETY: Valid during `->mmap`.
        let pages = unsafe { vdma_vma_pgoff(self.raw.as_ptr()) } as u64;
        pages.checked_mul(PAGE_SIZE as u64)
    }

    /// Whether the mapping was asked for with `MAP_SHARED`. `VM_SHARED` would not tell: the kernel
    /// takes it from mappings of files that are open for reading only (`do_mmap`).
    pub(crate) fn is_shared(&self) -> bool {
        // SAFETY: Both views of the union hold the flags.
        let flags = unsafe { self.vma().__bindgen_anon_2.vm_flags };
        flags & VDMA_VM_MAYSHARE != 0
    }

    /// Fills the whole mapping with the frames from `address` on. Sets `VM_IO`, `VM_PFNMAP`,
    /// `VM_DONTEXPAND` and `VM_DONTDUMP`. May sleep.
    ///
    /// # Safety
    ///
    /// The frames are device memory that user space may access.
    pub(crate) unsafe fn remap_io(self, address: u64) -> Result {
        let (start, len) = (self.start(), self.len());
        // Without operations a mapping counts as anonymous, and when its pages are gone a fault
        // would find memory that is not the device's. With operations but no handler it is a SIGBUS.
        // SAFETY: The mapping is not in use yet, and the operations are static.
        unsafe { (*self.raw.as_ptr()).vm_ops = &OPERATIONS.0 };
        // SAFETY: The range is the mapping itself; the caller vouches for the frames.
        kernel::error::to_result(unsafe {
            vdma_io_remap_pfn_range(
                self.raw.as_ptr(),
                start,
                (address / PAGE_SIZE as u64) as usize,
                len,
            )
        })
    }
}

struct Operations(bindings::vm_operations_struct);

// SAFETY: The table is never written to.
unsafe impl Sync for Operations {}

static OPERATIONS: Operations = Operations(pin_init::zeroed());

struct Inode(NonNull<bindings::inode>);

// SAFETY: Inodes are shared between tasks; this is a counted reference.
unsafe impl Send for Inode {}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: This object holds a reference to the inode. Dropped in process context only.
        unsafe { bindings::iput(self.0.as_ptr()) }
    }
}

/// The one `struct address_space` through which all mappings of a device can be found: that of the
/// inode by which the device was opened first. (The device may have several inodes, one for each node
/// with its number.)
#[pin_data]
pub(crate) struct SharedSpace {
    #[pin]
    state: Mutex<SpaceState>,
}

struct SpaceState {
    /// The inode by which the device was opened first.
    first: Option<Inode>,
    /// Set when nothing may be mapped any more.
    closed: bool,
}

impl SharedSpace {
    pub(crate) fn new() -> impl PinInit<Self> {
        let state = SpaceState { first: None, closed: false };
        pin_init!(Self { state <- kernel::new_mutex!(state, "vdma_space") })
    }

    /// Makes the mappings of a file that is being opened part of the shared space. The file keeps the
    /// inode until [`SpaceGuard`] is dropped, at its release. May sleep.
    ///
    /// # Safety
    ///
    /// `inode` and `file` are the arguments of `->open`.
    pub(crate) unsafe fn adopt(
        &self,
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> SpaceGuard {
        let mut state = self.state.lock();
        let shared = match &state.first {
            Some(inode) => inode.0,
            None => {
                // SAFETY: `inode` is valid during `->open`.
                unsafe { bindings::ihold(inode) };
                // SAFETY: As above: not null.
                let inode = unsafe { NonNull::new_unchecked(inode) };
                state.first = Some(Inode(inode));
                inode
            }
        };
        // SAFETY: The shared inode is held by `state`.
        unsafe { bindings::ihold(shared.as_ptr()) };
        // SAFETY: `file` is not in use yet, and the inode outlives it.
        unsafe { (*file).f_mapping = (*shared.as_ptr()).i_mapping };
        SpaceGuard(Inode(shared))
    }

    /// Runs `map`, unless the space is closed: `ENODEV`. May sleep.
    pub(crate) fn while_open(&self, map: impl FnOnce() -> Result) -> Result {
        let state = self.state.lock();
        if state.closed {
            return Err(ENODEV);
        }
        map()
    }

    /// Lets nothing be mapped any more, and takes the pages out of every mapping: the next access to
    /// one of them is a fault. May sleep.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        if let Some(inode) = &state.first {
            // SAFETY: The inode is held, and so is its address space; a hole of length 0 means all.
            unsafe { bindings::unmap_mapping_range((*inode.0.as_ptr()).i_mapping, 0, 0, 1) };
        }
    }
}

/// Keeps the inode behind a file's mappings. Dropped in process context.
pub(crate) struct SpaceGuard(#[allow(dead_code)] Inode);

// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for SpaceGuard {}
