// SPDX-License-Identifier: GPL-2.0

//! User mappings: what `->mmap_prepare` fills in, what the operations of a mapping do, and the
//! address space that finds all mappings of a device again.

use core::{marker::PhantomData, ptr, ptr::NonNull};

use kernel::{
    bindings,
    ffi::{c_int, c_uint, c_ulong, c_void},
    page::{PAGE_SHIFT, PAGE_SIZE},
    prelude::*,
    sync::{Arc, Mutex},
};

use crate::linux::{
    bindings::{
        VDMA_PMD_ORDER, VDMA_PUD_ORDER, VDMA_VM_PFNMAP, mntput, vdma_file_mount, vdma_get_page,
        vdma_mapping_is_shared, vdma_mapping_remap_io, vdma_mapping_set_cache,
        vdma_mapping_set_fixed, vdma_mapping_set_pfnmap, vmf_insert_pfn_pmd, vmf_insert_pfn_pud,
    },
    call_marker::CallMarker,
    io_memory::IoRange,
    page_runs::PageRuns,
};

/// The state behind an open file whose mappings have operations of their own.
///
/// All of these are called with the lock of the caller's address space held, and may sleep.
pub(crate) trait Mappable: Send + Sync + 'static {
    /// A mapping has come into being. On failure it is taken away again.
    fn mapped(&self) -> Result;

    /// A mapping was split, moved or inherited by a child: there is one more.
    fn duplicated(&self);

    /// A mapping that was counted by one of the above is gone.
    fn unmapped(&self);

    /// Something was touched that is not mapped.
    fn fault<'a>(&self, fault: Fault<'a>) -> FaultResult<'a>;
}

/// A mapping that is being made, of a file with a `T`: `struct vm_area_desc` inside of
/// `->mmap_prepare`.
///
/// # Invariants
///
/// What `private_data` of the file points at begins with a `T`.
pub(crate) struct NewMapping<'a, T> {
    raw: &'a mut bindings::vm_area_desc,
    _file: PhantomData<fn(T)>,
}

impl<T> NewMapping<'_, T> {
    /// # Safety
    ///
    /// `raw` is the argument of `->mmap_prepare`, of a file as the type's invariant says, and the
    /// result ends with that call.
    pub(super) unsafe fn from_raw(raw: *mut bindings::vm_area_desc) -> Self {
        // INVARIANT: The caller vouches for the file.
        Self {
            // SAFETY: The caller vouches for the description, which nothing else uses during the
            // call.
            raw: unsafe { &mut *raw },
            _file: PhantomData,
        }
    }

    /// Bytes of the mapping.
    pub(crate) fn len(&self) -> usize {
        self.raw.end - self.raw.start
    }

    /// Offset in the file at which the mapping begins, in bytes; `None` when it overflows.
    pub(crate) fn offset(&self) -> Option<u64> {
        (self.raw.pgoff as u64).checked_mul(PAGE_SIZE as u64)
    }
}

impl<T: Mappable> NewMapping<'_, T> {
    /// `EINVAL` unless the mapping was asked for with `MAP_SHARED`: a private one has pages of its
    /// own, which neither the functions below nor the kernel can put beside frames that have none.
    fn set_operations(&mut self) -> Result {
        // SAFETY: The description is valid.
        if !unsafe { vdma_mapping_is_shared(self.raw) } {
            return Err(EINVAL);
        }
        self.raw.vm_ops = Table::<T>::OPERATIONS;
        // Says whether `mapped` has counted the mapping.
        self.raw.private_data = ptr::null_mut();
        Ok(())
    }

    /// Chooses the cache attribute. For device memory only: RAM is mapped write-back elsewhere.
    fn set_cache(&mut self, cache: u32) {
        // SAFETY: The description is valid.
        unsafe { vdma_mapping_set_cache(self.raw, cache) }
    }

    /// Has the kernel fill the whole mapping with device memory, when it is in place
    /// (`io_remap_pfn_range`), with `cache` one of the `CACHE_*` values of the protocol: byte 0 of
    /// the file is the first of `range`. `EINVAL` for a private mapping, and for one that leaves
    /// the range or does not begin at a page boundary of it. Sets `VM_IO`, `VM_PFNMAP`,
    /// `VM_DONTEXPAND` and `VM_DONTDUMP`.
    pub(crate) fn remap_io(mut self, range: IoRange, cache: u32) -> Result {
        let address = self
            .offset()
            .and_then(|offset| range.at(offset, self.len() as u64))
            .filter(|address| address % PAGE_SIZE as u64 == 0)
            .ok_or(EINVAL)?;
        self.set_operations()?;
        self.set_cache(cache);
        // SAFETY: The description is valid; the frames are device memory, by the invariant of the
        // range.
        unsafe { vdma_mapping_remap_io(self.raw, (address >> PAGE_SHIFT) as usize) };
        Ok(())
    }

    /// Leaves it to [`Mappable::fault`] to map frames that have no `struct page`, with the same
    /// flags, and with `cache` one of the `CACHE_*` values of the protocol. `EINVAL` for a private
    /// mapping.
    pub(crate) fn fault_frames(mut self, cache: u32) -> Result {
        self.set_operations()?;
        self.set_cache(cache);
        // SAFETY: The description is valid.
        unsafe { vdma_mapping_set_pfnmap(self.raw) };
        Ok(())
    }

    /// Leaves it to [`Mappable::fault`] to map pages of memory. `EINVAL` for a private mapping.
    pub(crate) fn fault_pages(mut self) -> Result {
        self.set_operations()?;
        // SAFETY: The description is valid.
        unsafe { vdma_mapping_set_fixed(self.raw) };
        Ok(())
    }
}

/// A fault in a mapping: `struct vm_fault`.
///
/// # Invariants
///
/// The fault is being handled, in the mapping that it names.
pub(crate) struct Fault<'a> {
    raw: &'a mut bindings::vm_fault,
    order: u32,
    _fault: CallMarker<'a>,
}

/// How a fault ended: `vm_fault_t`. It belongs to that fault, for some results say what was put
/// into it.
pub(crate) struct FaultResult<'a>(bindings::vm_fault_t, CallMarker<'a>);

impl FaultResult<'_> {
    /// There is nothing to map: `SIGBUS`.
    pub(crate) const BUS_ERROR: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGBUS, PhantomData);
    /// Not with so large a page; the kernel tries a smaller one.
    pub(crate) const FALLBACK: Self =
        Self(bindings::vm_fault_reason_VM_FAULT_FALLBACK, PhantomData);

    /// Whether a frame was mapped.
    pub(crate) fn is_mapped(&self) -> bool {
        self.0 == bindings::vm_fault_reason_VM_FAULT_NOPAGE
    }
}

impl<'a> Fault<'a> {
    /// Whether a huge page would be mapped.
    pub(crate) fn is_huge(&self) -> bool {
        self.order > 0
    }

    /// Offset in the file of the page that was touched, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        (self.raw.__bindgen_anon_1.pgoff as u64) << PAGE_SHIFT
    }

    fn is_write(&self) -> bool {
        self.raw.flags & bindings::fault_flag_FAULT_FLAG_WRITE != 0
    }

    fn vma(&self) -> *mut bindings::vm_area_struct {
        self.raw.__bindgen_anon_1.vma
    }

    /// Whether the mapping is one of frames without pages.
    fn is_of_frames(&self) -> bool {
        // SAFETY: The mapping is there during a fault; both views of the union hold the flags.
        unsafe { (*self.vma()).__bindgen_anon_2.vm_flags & VDMA_VM_PFNMAP != 0 }
    }

    /// Maps the frames of device memory at the offset of the fault: byte 0 of the file is the first
    /// of `range`, and the file ends with it. `BUS_ERROR` for a mapping that is not one of frames.
    pub(crate) fn insert_frames(self, range: IoRange) -> FaultResult<'a> {
        let address = self.raw.__bindgen_anon_1.address;
        let size = PAGE_SIZE << self.order;
        let within = (address & (size - 1)) as u64 & !(PAGE_SIZE as u64 - 1);
        let vma = self.vma();
        if !self.is_of_frames() {
            return FaultResult::BUS_ERROR;
        }
        // SAFETY: The mapping is there during a fault; both views of the union hold its borders.
        let (vma_start, vma_end) = unsafe {
            let borders = (*vma).__bindgen_anon_1.__bindgen_anon_1;
            (borders.vm_start, borders.vm_end)
        };
        let start = address & !(size - 1);
        // The whole page has to be inside of the mapping, and of the file, and as well aligned in
        // physical memory as in virtual memory.
        let Some(offset) = self.offset().checked_sub(within) else {
            return FaultResult::FALLBACK;
        };
        let frames = match range.at(offset, size as u64) {
            Some(frames) if start >= vma_start && start + size <= vma_end => frames,
            _ if self.order > 0 => return FaultResult::FALLBACK,
            _ => return FaultResult::BUS_ERROR,
        };
        if frames & (size as u64 - 1) != 0 {
            return FaultResult::FALLBACK;
        }
        let frame = (frames >> PAGE_SHIFT) as usize;
        let write = self.is_write();
        let result = match self.order {
            // SAFETY: The mapping is one of frames without pages, and the frame is device memory,
            // by the invariant of the range.
            0 => unsafe { bindings::vmf_insert_pfn(vma, start, frame) },
            // SAFETY: The mapping is one of frames, 2 MiB of which are device memory, and aligned.
            VDMA_PMD_ORDER => unsafe { vmf_insert_pfn_pmd(self.raw, frame, write) },
            // SAFETY: The mapping is one of frames, 1 GiB of which is device memory, and aligned.
            VDMA_PUD_ORDER => unsafe { vmf_insert_pfn_pud(self.raw, frame, write) },
            _ => return FaultResult::FALLBACK,
        };
        FaultResult(result, PhantomData)
    }

    /// Maps the page with the number `index` of `pages`, with a reference of the mapping's own.
    /// `BUS_ERROR` for a page that is not there or was not allocated for it, and for a mapping of
    /// frames; `FALLBACK` for a huge page.
    pub(crate) fn insert_page(self, pages: &PageRuns, index: usize) -> FaultResult<'a> {
        if self.is_huge() {
            return FaultResult::FALLBACK;
        }
        if self.is_of_frames() {
            return FaultResult::BUS_ERROR;
        }
        let Some(page) = pages.mappable_page(index) else {
            return FaultResult::BUS_ERROR;
        };
        // SAFETY: The page is held while it is borrowed, and belongs to no other object that the
        // kernel maps, for it was allocated for this. The kernel gives the reference back when it
        // unmaps the page.
        unsafe { vdma_get_page(page.as_ptr()) };
        self.raw.page = page.as_ptr();
        FaultResult(0, PhantomData)
    }
}

/// The operations of mappings of files with a `T`.
struct Table<T>(PhantomData<T>);

impl<T: Mappable> Table<T> {
    const OPERATIONS: &'static bindings::vm_operations_struct = &bindings::vm_operations_struct {
        mapped: Some(Self::mapped),
        open: Some(Self::open),
        close: Some(Self::close),
        fault: Some(Self::fault),
        huge_fault: Some(Self::huge_fault),
        access: Some(bindings::generic_access_phys),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `file` is an open file with a `T`.
    unsafe fn state<'a>(file: *const bindings::file) -> &'a T {
        // SAFETY: The caller vouches for it. The mapping keeps the file.
        unsafe { &*(*file).private_data.cast::<T>() }
    }

    unsafe extern "C" fn mapped(
        _start: c_ulong,
        _end: c_ulong,
        _offset: c_ulong,
        file: *const bindings::file,
        private: *mut *mut c_void,
    ) -> c_int {
        // SAFETY: Only a `NewMapping` for a `T` sets these operations, and its file has a `T`.
        let state = unsafe { Self::state(file) };
        match state.mapped() {
            Ok(()) => {
                // SAFETY: `private` is valid for writes.
                unsafe { *private = ptr::from_ref(state).cast_mut().cast() };
                0
            }
            Err(error) => error.to_errno(),
        }
    }

    /// The state, if the mapping was counted.
    ///
    /// # Safety
    ///
    /// `vma` is a mapping with these operations.
    unsafe fn counted<'a>(vma: *mut bindings::vm_area_struct) -> Option<&'a T> {
        // SAFETY: Null, or what `mapped` stored: the state of the file that the mapping keeps.
        unsafe { (*vma).vm_private_data.cast::<T>().as_ref() }
    }

    unsafe extern "C" fn open(vma: *mut bindings::vm_area_struct) {
        // SAFETY: The kernel calls the operations of a mapping with that mapping.
        if let Some(state) = unsafe { Self::counted(vma) } {
            state.duplicated();
        }
    }

    unsafe extern "C" fn close(vma: *mut bindings::vm_area_struct) {
        // SAFETY: The kernel calls the operations of a mapping with that mapping.
        if let Some(state) = unsafe { Self::counted(vma) } {
            state.unmapped();
        }
    }

    unsafe extern "C" fn fault(raw: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The kernel calls this with a fault that is valid during the call, in a mapping
        // with these operations.
        unsafe { Self::huge_fault(raw, 0) }
    }

    unsafe extern "C" fn huge_fault(
        raw: *mut bindings::vm_fault,
        order: c_uint,
    ) -> bindings::vm_fault_t {
        // SAFETY: The fault is valid during the call, and used by this call alone.
        let raw = unsafe { &mut *raw };
        // SAFETY: Only a `NewMapping` for a `T` sets these operations, and the mapping keeps its
        // file, with a `T`.
        let state = unsafe { Self::state((*raw.__bindgen_anon_1.vma).vm_file) };
        // INVARIANT: The kernel handles the fault, in its mapping, until this function returns.
        let fault = Fault {
            raw,
            order,
            _fault: PhantomData,
        };
        match state.fault(fault).0 {
            // There is no smaller page, and the kernel panics at this answer.
            bindings::vm_fault_reason_VM_FAULT_FALLBACK if order == 0 => {
                bindings::vm_fault_reason_VM_FAULT_SIGBUS
            }
            result => result,
        }
    }
}

/// An inode, and the mount by which it was opened: without that, its file system could go.
///
/// # Invariants
///
/// There is a reference to each for this object.
struct Inode {
    inode: NonNull<bindings::inode>,
    mount: *mut bindings::vfsmount,
}

// SAFETY: Inodes and mounts are shared between tasks; these are counted references.
unsafe impl Send for Inode {}

impl Inode {
    /// # Safety
    ///
    /// `inode` and `file` are the arguments of `->open`.
    unsafe fn hold(inode: *mut bindings::inode, file: *mut bindings::file) -> Self {
        // INVARIANT: References are taken to both.
        // SAFETY: `inode` is valid during `->open`, and so not null; the file has a path by then.
        unsafe {
            bindings::ihold(inode);
            Self {
                inode: NonNull::new_unchecked(inode),
                mount: vdma_file_mount(file),
            }
        }
    }

    /// The address space of its mappings.
    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is held.
        unsafe { (*self.inode.as_ptr()).i_mapping }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: This object holds a reference to each. Dropped in process context only, and the
        // inode first: its file system stays until then.
        unsafe {
            bindings::iput(self.inode.as_ptr());
            mntput(self.mount);
        }
    }
}

/// The one `struct address_space` through which all mappings of a device can be found: that of the
/// inode by which the device was opened first, of those who have it open. (The device may have
/// several inodes, one for each node with its number.)
///
/// # Invariants
///
/// `files` is the number of [`SpaceGuard`]s, and there is an inode while it is not 0. Files whose
/// mappings are part of the space have a guard.
#[pin_data]
pub(crate) struct SharedSpace {
    #[pin]
    state: Mutex<SpaceState>,
}

struct SpaceState {
    /// The inode by which the device was opened first, while any file is open.
    first: Option<Inode>,
    /// Open files.
    files: usize,
    /// Set when nothing may be mapped any more.
    closed: bool,
}

impl SharedSpace {
    pub(crate) fn new() -> impl PinInit<Self> {
        let state = SpaceState {
            first: None,
            files: 0,
            closed: false,
        };
        // INVARIANT: There are no guards, and no files.
        pin_init!(Self { state <- kernel::new_mutex!(state, "vdma_space") })
    }

    /// Makes the mappings of a file that is being opened part of the shared space. The file keeps
    /// the inode until [`SpaceGuard`] is dropped, at its release. May sleep.
    ///
    /// # Safety
    ///
    /// `inode` and `file` are the arguments of `->open`. The guard is not dropped before the file
    /// is released, unless it is not opened after all.
    pub(super) unsafe fn adopt(
        self: &Arc<Self>,
        inode: *mut bindings::inode,
        file: *mut bindings::file,
    ) -> SpaceGuard {
        let mut state = self.state.lock();
        state.files += 1;
        // SAFETY: The caller vouches for the arguments.
        let first = || unsafe { Inode::hold(inode, file) };
        let mapping = state.first.get_or_insert_with(first).mapping();
        // SAFETY: `file` is not in use yet, and the inode is held until it is released.
        unsafe { (*file).f_mapping = mapping };
        // INVARIANT: Counted above.
        SpaceGuard(self.clone())
    }

    /// Runs `map`, unless the space is closed: `None`. May sleep.
    ///
    /// What `map` maps into a mapping that is in place is found by [`SharedSpace::close`].
    pub(crate) fn while_open<R>(&self, map: impl FnOnce() -> R) -> Option<R> {
        let state = self.state.lock();
        (!state.closed).then(map)
    }

    /// Lets nothing be mapped any more, and takes the pages out of every mapping: the next access
    /// to one of them is a fault. May sleep.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        if let Some(inode) = &state.first {
            // SAFETY: The inode is held, and so is its address space; a hole of length 0 means all.
            unsafe { bindings::unmap_mapping_range(inode.mapping(), 0, 0, 1) };
        }
    }
}

/// Keeps the inode behind a file's mappings. Dropped in process context, when the file has no
/// mapping any more.
pub(crate) struct SpaceGuard(Arc<SharedSpace>);

impl Drop for SpaceGuard {
    fn drop(&mut self) {
        let unused = {
            let mut state = self.0.state.lock();
            // INVARIANT: One guard less; the inode goes with the last.
            state.files -= 1;
            match state.files {
                0 => state.first.take(),
                _ => None,
            }
        };
        drop(unused);
    }
}
