// SPDX-License-Identifier: GPL-2.0

//! The trace: a ring of completed requests in vmalloc memory, which user space maps and reads without
//! a call.
//!
//! The completions of several CPUs write at once: each takes the next number, and marks the slot while
//! it writes (see [`TraceRecord`]). Nobody waits for readers; slow ones lose records and notice it.

use core::{
    mem::{offset_of, size_of},
    ptr::{self, NonNull},
};

use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi::c_int,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        atomic::{Atomic, Relaxed, Release, ordering},
    },
};

use crate::{
    linux::{
        anon_file::{self, AnonymousFile},
        bindings::{
            VDMA_VM_WRITE, remap_vmalloc_range, vdma_preempt_disable, vdma_preempt_enable,
            vdma_vma_forbid_writing, vdma_vma_pgoff, vfree, vmalloc_user_noprof,
        },
    },
    observe::DeviceObserver,
    protocol::{TraceHeader, TraceRecord},
};

/// Records of a ring: a power of two.
const CAPACITY: u64 = 4096;

/// Bytes of a ring: a page for the header, then the records.
const LENGTH: usize = PAGE_SIZE + CAPACITY as usize * size_of::<TraceRecord>();

/// A ring of records, in pages that are neighbours in virtual memory only.
pub(crate) struct TraceRing(NonNull<TraceHeader>);

// SAFETY: The memory is the kernel's; the header and the slots are written atomically, or by whoever
// has taken the number.
unsafe impl Send for TraceRing {}
// SAFETY: As above.
unsafe impl Sync for TraceRing {}

impl TraceRing {
    /// An empty ring, zeroed. May sleep.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Any size may be asked for.
        let memory = unsafe { vmalloc_user_noprof(LENGTH) };
        let header = NonNull::new(memory.cast::<TraceHeader>()).ok_or(ENOMEM)?;
        // SAFETY: The memory is new, and begins at a page.
        unsafe {
            header.write(TraceHeader {
                head: 0,
                capacity: CAPACITY as u32,
                records_offset: PAGE_SIZE as u32,
                record_size: size_of::<TraceRecord>() as u32,
                reserved: 0,
            })
        };
        Ok(Self(header))
    }

    /// Appends `record`, over the oldest one. Any context.
    pub(crate) fn append(&self, mut record: TraceRecord) {
        const { assert!(offset_of!(TraceHeader, head) == 0) };
        const { assert!(offset_of!(TraceRecord, stamp) == 0) };
        // SAFETY: The header is in place; its first word is only accessed atomically.
        let head = unsafe { Atomic::<u64>::from_ptr(self.0.as_ptr().cast()) };
        // Tasks that look for completions come here too. One that was put aside half-way would write
        // over what others have written since.
        // SAFETY: Undone below, and nothing in between sleeps.
        unsafe { vdma_preempt_disable() };
        let number = head.fetch_add(1, Relaxed);
        let index = (number % CAPACITY) as usize;
        // SAFETY: The slots begin a page after the header, and the index is inside.
        let slot = unsafe {
            self.0
                .as_ptr()
                .byte_add(PAGE_SIZE)
                .cast::<TraceRecord>()
                .add(index)
        };
        // SAFETY: As above, for the first word of the slot.
        let stamp = unsafe { Atomic::<u64>::from_ptr(slot.cast()) };
        // The mark has to be seen before any of the record.
        stamp.xchg(2 * number + 1, ordering::Full);
        record.stamp = 2 * number + 1;
        // SAFETY: The slot is this CPU's until the ring has come round: interrupts that arrive in
        // between take other numbers, and 4096 of them do not.
        unsafe { ptr::write_volatile(slot, record) };
        stamp.store(2 * number + 2, Release);
        // SAFETY: Disabled above.
        unsafe { vdma_preempt_enable() };
    }

    /// Fills `vma` with the ring. `EINVAL` for another size or offset. May sleep.
    ///
    /// # Safety
    ///
    /// `vma` is the argument of `->mmap`.
    unsafe fn map(&self, vma: *mut bindings::vm_area_struct) -> Result {
        // SAFETY: The mapping is valid, and not in use yet; both views of the union hold the borders.
        let (writable, offset) = unsafe {
            (
                (*vma).__bindgen_anon_2.vm_flags & VDMA_VM_WRITE != 0,
                vdma_vma_pgoff(vma),
            )
        };
        if writable {
            return Err(EPERM);
        }
        // SAFETY: The mapping is valid, and not in use yet.
        unsafe { vdma_vma_forbid_writing(vma) };
        // SAFETY: The memory comes from `vmalloc_user`; the function checks the range. The pages stay
        // while they are mapped.
        to_result(unsafe { remap_vmalloc_range(vma, self.0.as_ptr().cast(), offset) })
    }
}

impl Drop for TraceRing {
    fn drop(&mut self) {
        // SAFETY: The memory comes from `vmalloc_user`. It may be freed in any context.
        unsafe { vfree(self.0.as_ptr().cast()) }
    }
}

/// An open file of the trace: while there is one, requests are recorded.
pub(crate) struct TraceFile(Arc<DeviceObserver>);

impl TraceFile {
    /// Bytes that its mapping has.
    pub(crate) const LENGTH: usize = LENGTH;

    /// May sleep.
    pub(crate) fn new(device: Arc<DeviceObserver>) -> Result<Self> {
        device.trace()?;
        device.count_reader(true);
        Ok(Self(device))
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        self.0.count_reader(false);
    }
}

static TABLE: anon_file::Table = anon_file::Table::new();

impl AnonymousFile for TraceFile {
    const NAME: &'static CStr = c"[vdma-trace]";

    fn operations(table: &mut bindings::file_operations) {
        table.mmap = Some(mmap);
    }

    fn table() -> &'static anon_file::Table {
        &TABLE
    }
}

unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: Files with this operation have a `TraceFile`.
    let state = unsafe { &*(*file).private_data.cast::<TraceFile>() };
    from_result(|| {
        // SAFETY: These are the arguments of `->mmap`.
        unsafe { state.0.trace()?.map(vma) }?;
        Ok(0)
    })
}
