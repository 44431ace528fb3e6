// SPDX-License-Identifier: GPL-2.0

//! Memory of a device in the physical address space: `ioremap`.

use core::ptr::NonNull;

use kernel::{bindings, ffi::c_void, prelude::*};

use crate::linux::bindings::{vdma_ioremap, vdma_memcpy_fromio, vdma_memcpy_toio};

/// A range of physical addresses behind which a device has memory, that user space may be given.
///
/// # Invariants
///
/// The addresses were those of memory of a device when this was made, and are not of RAM. When the
/// device is gone there is nothing behind them, and reads give ones, or another device: what is
/// mapped has to be unmapped, and accessed no more, before the device is gone.
#[derive(Clone, Copy)]
pub(crate) struct IoRange {
    address: u64,
    size: u64,
}

impl IoRange {
    /// # Safety
    ///
    /// The range is memory of a device, in a BAR for instance, without side effects of accesses.
    pub(crate) unsafe fn new(address: u64, size: u64) -> Self {
        // INVARIANT: The caller vouches for it.
        Self { address, size }
    }

    pub(crate) fn address(self) -> u64 {
        self.address
    }

    pub(crate) fn size(self) -> u64 {
        self.size
    }

    /// The first `size` bytes, or all if there are fewer.
    pub(crate) fn truncated(self, size: u64) -> Self {
        // INVARIANT: A part of the range.
        Self {
            size: self.size.min(size),
            ..self
        }
    }

    /// The address of `length` bytes from `offset` on, if the range has them.
    pub(crate) fn at(self, offset: u64, length: u64) -> Option<u64> {
        let end = offset.checked_add(length)?;
        (end <= self.size).then(|| self.address + offset)
    }
}

/// Device memory in the kernel's address space.
///
/// # Invariants
///
/// `size` bytes are mapped at `address`.
pub(crate) struct IoMemory {
    address: NonNull<c_void>,
    size: usize,
}

// SAFETY: The mapping is the kernel's, which every task shares.
unsafe impl Send for IoMemory {}
// SAFETY: Accesses are copies without references.
unsafe impl Sync for IoMemory {}

impl IoMemory {
    /// Maps `range`, with `cache` one of the `CACHE_*` values of the protocol. May sleep. `EBUSY`
    /// when the frames are mapped with another cache attribute.
    pub(crate) fn map(range: IoRange, cache: u32) -> Result<Self> {
        let size = usize::try_from(range.size)?;
        // SAFETY: The range is memory of a device, by its invariant.
        let address = unsafe { vdma_ioremap(range.address, size, cache) };
        // INVARIANT: Mapped above, if there is an address.
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
        // SAFETY: The source is inside of the mapping, and `bytes` is as long as is said.
        unsafe { vdma_memcpy_fromio(bytes.as_mut_ptr().cast(), from, bytes.len()) };
        Ok(())
    }

    /// Copies `bytes` to device memory at `offset`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: The target is inside of the mapping, and `bytes` is as long as is said.
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
