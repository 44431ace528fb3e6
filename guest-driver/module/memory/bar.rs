// SPDX-License-Identifier: GPL-2.0

//! The BAR window: device memory in the guest's physical address space, for user space and for the
//! kernel itself.
//!
//! Mappings of the same frames have to agree on the cache attribute, so it belongs to the window.
//! The kernel's own mapping reserves it: mappings by fault take what is reserved (`lookup_memtype`
//! in `arch/x86/mm/pat/memtype.c`), and would be uncached without it.

use kernel::{page::PAGE_SIZE, prelude::*, sync::Mutex};

use crate::{
    linux::{
        io_memory::{IoMemory, IoRange},
        vma::{Fault, FaultResult, Mappable, NewMapping},
    },
    protocol::{CACHE_UNCACHED, CACHE_WRITE_BACK, MAP_LAZY},
};

struct State {
    cache: u32,
    /// `None` when the device is gone.
    kernel: Option<IoMemory>,
    /// Mappings of user space.
    mappings: usize,
}

/// The part of a BAR in which the device has its memory.
#[pin_data]
pub(crate) struct Bar {
    range: IoRange,
    #[pin]
    state: Mutex<State>,
}

impl Bar {
    /// The window, which has `memory_size` bytes of device memory; an error if it cannot be mapped
    /// page by page. May sleep.
    pub(crate) fn new(region: IoRange, memory_size: u64) -> Result<impl PinInit<Self>> {
        let page = PAGE_SIZE as u64;
        if region.address() % page != 0 || region.size() < page {
            return Err(EINVAL);
        }
        let size = region.size().min(memory_size) & !(page - 1);
        let range = region.truncated(size);
        let kernel = Some(IoMemory::map(range, CACHE_WRITE_BACK)?);
        let state = State {
            cache: CACHE_WRITE_BACK,
            kernel,
            mappings: 0,
        };
        Ok(pin_init!(Self {
            range,
            state <- kernel::new_mutex!(state, "vdma_bar"),
        }))
    }

    pub(crate) fn address(&self) -> u64 {
        self.range.address()
    }

    pub(crate) fn size(&self) -> u64 {
        self.range.size()
    }

    /// Runs `access` on the kernel's own mapping; `ENODEV` when the device is gone. May sleep.
    ///
    /// [`Self::close`] waits for it, so it has to be short, and must not wait for user space:
    /// another device may get the addresses when this one is gone.
    pub(crate) fn with_io_memory(&self, access: impl FnOnce(&IoMemory) -> Result) -> Result {
        access(self.state.lock().kernel.as_ref().ok_or(ENODEV)?)
    }

    /// Drops the kernel's own mapping, which is not accessed any more when this returns. May sleep.
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
        drop(old);
        state.cache = cache;
        let mapped = IoMemory::map(self.range, state.cache).or_else(|error| {
            state.cache = before;
            IoMemory::map(self.range, before).map_err(|_| error)
        });
        state.kernel = Some(mapped?);
        if state.cache == cache {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }

    /// Counts a mapping of user space that was made (`true`) or is gone. May sleep.
    pub(crate) fn count_mapping(&self, made: bool) {
        let mut state = self.state.lock();
        state.mappings = if made {
            state.mappings + 1
        } else {
            state.mappings.saturating_sub(1)
        };
    }

    /// Maps the window, or the part at the offset of the mapping, into user space, as `mode` (one
    /// of the `MAP_*` values of the protocol) says. May sleep.
    ///
    /// `EINVAL` for a private mapping (its copies would not be device memory) and for a range that
    /// leaves the window.
    pub(crate) fn map<T: Mappable>(&self, mapping: NewMapping<'_, T>, mode: u32) -> Result {
        let offset = mapping.offset().ok_or(EINVAL)?;
        self.range.at(offset, mapping.len() as u64).ok_or(EINVAL)?;
        let cache = self.state.lock().cache;
        if mode == MAP_LAZY {
            mapping.fault_frames(cache)
        } else {
            mapping.remap_io(self.range, cache)
        }
    }

    /// Handles a fault in a mapping of the window.
    pub(crate) fn fault<'a>(&self, fault: Fault<'a>) -> FaultResult<'a> {
        fault.insert_frames(self.range)
    }
}
