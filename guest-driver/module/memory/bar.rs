// SPDX-License-Identifier: GPL-2.0

//! The BAR window: device memory in the guest's physical address space, for user space and for the
//! kernel itself.
//!
//! Mappings of the same frames have to agree on the cache attribute, so it belongs to the window. The
//! kernel's own mapping reserves it: mappings by fault take what is reserved (`lookup_memtype` in
//! `arch/x86/mm/pat/memtype.c`), and would be uncached without it.

use core::ptr::NonNull;

use kernel::{
    bindings,
    ffi::c_void,
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, Mutex},
};

use crate::{
    linux::{
        bindings::{vdma_ioremap, vdma_memcpy_fromio, vdma_memcpy_toio},
        vma::{Fault, FaultResult, Mappable, NewMapping},
    },
    protocol::{CACHE_UNCACHED, CACHE_WRITE_BACK, MAP_LAZY},
    virtio::SharedMemory,
};

/// Device memory in the kernel's address space (`ioremap`). The address does not become invalid when
/// the device goes, but there is nothing behind it then: reads give ones.
pub(crate) struct IoMemory {
    address: NonNull<c_void>,
    size: usize,
}

// SAFETY: The mapping is the kernel's, which every task shares.
unsafe impl Send for IoMemory {}
// SAFETY: Accesses are copies without references.
unsafe impl Sync for IoMemory {}

impl IoMemory {
    /// Maps `size` bytes at the physical `address`. May sleep. `EBUSY` when the frames are mapped with
    /// another cache attribute.
    fn map(address: u64, size: u64, cache: u32) -> Result<Self> {
        let size = usize::try_from(size)?;
        // SAFETY: The range is a BAR of a device that the driver is bound to.
        let address = unsafe { vdma_ioremap(address, size, cache) };
        Ok(Self {
            address: NonNull::new(address).ok_or(EBUSY)?,
            size,
        })
    }

    fn at(&self, offset: u64, length: usize) -> Result<*mut c_void> {
        let offset = usize::try_from(offset)?;
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(EINVAL);
        }
        Ok(self.address.as_ptr().wrapping_byte_add(offset))
    }

    /// Copies device memory at `offset` to `bytes`.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result {
        let from = self.at(offset, bytes.len())?;
        // SAFETY: The source is inside of the mapping.
        unsafe { vdma_memcpy_fromio(bytes.as_mut_ptr().cast(), from, bytes.len()) };
        Ok(())
    }

    /// Copies `bytes` to device memory at `offset`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: The target is inside of the mapping.
        unsafe { vdma_memcpy_toio(to, bytes.as_ptr().cast(), bytes.len()) };
        Ok(())
    }
}

impl Drop for IoMemory {
    fn drop(&mut self) {
        // SAFETY: `map` mapped it. Dropped in process context only.
        unsafe { bindings::iounmap(self.address.as_ptr()) }
    }
}

struct State {
    cache: u32,
    /// `None` when the device is gone.
    kernel: Option<Arc<IoMemory>>,
    /// Mappings of user space.
    mappings: usize,
}

/// The part of a BAR in which the device shows its memory.
#[pin_data]
pub(crate) struct Bar {
    address: u64,
    size: u64,
    #[pin]
    state: Mutex<State>,
}

impl Bar {
    /// The window, which shows `memory_size` bytes; an error if it cannot be mapped page by page. May
    /// sleep.
    pub(crate) fn new(region: SharedMemory, memory_size: u64) -> Result<impl PinInit<Self>> {
        let page = PAGE_SIZE as u64;
        if region.address % page != 0 || region.size < page {
            return Err(EINVAL);
        }
        let size = region.size.min(memory_size) & !(page - 1);
        let kernel = IoMemory::map(region.address, size, CACHE_WRITE_BACK)?;
        let kernel = Some(Arc::new(kernel, GFP_KERNEL)?);
        let state = State {
            cache: CACHE_WRITE_BACK,
            kernel,
            mappings: 0,
        };
        Ok(pin_init!(Self {
            address: region.address,
            size,
            state <- kernel::new_mutex!(state, "vdma_bar"),
        }))
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The kernel's own mapping; `ENODEV` when the device is gone. May sleep.
    pub(crate) fn io_memory(&self) -> Result<Arc<IoMemory>> {
        self.state.lock().kernel.clone().ok_or(ENODEV)
    }

    /// Gives up the kernel's own mapping. May sleep.
    pub(crate) fn close(&self) {
        let kernel = self.state.lock().kernel.take();
        drop(kernel);
    }

    /// Chooses the cache attribute of all mappings: `EBUSY` while there is one in user space. May
    /// sleep.
    pub(crate) fn set_cache(&self, cache: u32) -> Result {
        if cache > CACHE_UNCACHED {
            return Err(EINVAL);
        }
        let mut state = self.state.lock();
        if state.mappings > 0 {
            return Err(EBUSY);
        }
        let old = state.kernel.take().ok_or(ENODEV)?;
        // The old mapping has to go first: the two may not disagree.
        let before = state.cache;
        if let Some(last) = Arc::into_unique_or_drop(old) {
            drop(last);
            state.cache = cache;
        }
        let mapped = IoMemory::map(self.address, self.size, state.cache).or_else(|error| {
            state.cache = before;
            IoMemory::map(self.address, self.size, before).map_err(|_| error)
        });
        state.kernel = Some(Arc::new(mapped?, GFP_KERNEL)?);
        if state.cache == cache {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }

    /// Counts a mapping of user space that has come (`true`) or gone. May sleep.
    pub(crate) fn count_mapping(&self, come: bool) {
        let mut state = self.state.lock();
        state.mappings = if come {
            state.mappings + 1
        } else {
            state.mappings.saturating_sub(1)
        };
    }

    /// Maps the window, or the part that the mapping asks for, into user space, as `mode` (one of the
    /// `MAP_*` values of the protocol) says. May sleep.
    ///
    /// `EINVAL` for a private mapping (its copies would not be device memory) and for a range that
    /// leaves the window.
    ///
    /// # Safety
    ///
    /// The file of the mapping has a `T`.
    pub(crate) unsafe fn map<T: Mappable>(&self, mut mapping: NewMapping<'_>, mode: u32) -> Result {
        if !mapping.is_shared() {
            return Err(EINVAL);
        }
        let offset = mapping.offset().ok_or(EINVAL)?;
        let end = offset.checked_add(mapping.len() as u64).ok_or(EINVAL)?;
        if end > self.size {
            return Err(EINVAL);
        }
        mapping.set_cache(self.state.lock().cache);
        if mode == MAP_LAZY {
            // SAFETY: The caller vouches for the file.
            unsafe { mapping.fault_frames::<T>() };
        } else {
            // SAFETY: The frames are the device's memory, which is there for user space to use; the
            // caller vouches for the file.
            unsafe { mapping.remap_io::<T>(self.address + offset) };
        }
        Ok(())
    }

    /// Maps what a fault asks for.
    pub(crate) fn fault(&self, fault: Fault<'_>) -> FaultResult {
        // SAFETY: The frames are the device's memory, which is there for user space to use.
        unsafe { fault.insert_frames(self.address, self.size) }
    }
}
