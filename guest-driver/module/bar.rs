// SPDX-License-Identifier: GPL-2.0

//! The BAR window: device memory in the guest's physical address space.

use crate::{virtio::SharedMemory, vma::NewMapping};
use kernel::{page::PAGE_SIZE, prelude::*};

/// The part of a BAR in which the device shows its memory.
#[derive(Clone, Copy)]
pub(crate) struct Bar {
    address: u64,
    size: u64,
}

impl Bar {
    /// The window, if all of it can be mapped page by page.
    pub(crate) fn new(region: SharedMemory) -> Option<Self> {
        let page = PAGE_SIZE as u64;
        let aligned = region.address % page == 0 && region.size >= page;
        aligned.then_some(Self { address: region.address, size: region.size })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Maps the window, or the part that the mapping asks for, into user space.
    ///
    /// `EINVAL` for a private mapping (its copies would not be device memory) and for a range that
    /// leaves the window.
    pub(crate) fn map(&self, mapping: NewMapping<'_>) -> Result {
        if !mapping.is_shared() {
            return Err(EINVAL);
        }
        let offset = mapping.offset().ok_or(EINVAL)?;
        let end = offset.checked_add(mapping.len() as u64).ok_or(EINVAL)?;
        if end > self.size {
            return Err(EINVAL);
        }
        // SAFETY: The frames are the device's memory, which is there for user space to use.
        unsafe { mapping.remap_io(self.address + offset) }
    }
}
