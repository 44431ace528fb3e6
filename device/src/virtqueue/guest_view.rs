//! Guest memory as the device accesses it.

use std::{cell::Cell, sync::Arc};

use thiserror::Error;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MmapRegion,
    VolatileMemory, VolatileSlice,
};

use crate::{
    memory::{DeviceMemory, FileIdentity},
    sigbus::{Owner, Watched},
};

/// Part of a range is not in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("guest address {0:#x} is outside of guest memory")]
pub struct AddressError(pub u64);

/// One state of the memory table, prepared for look-ups.
///
/// A region that maps device memory (a front end puts the BAR into its memory table) is resolved to
/// the device's own mapping. Two addresses of the same byte are then the same pointer, by which a
/// copy detects that source and destination overlap.
#[derive(Debug)]
pub struct GuestView {
    regions: Vec<Region>,
    /// The region of the last hit: consecutive look-ups mostly stay in one.
    recent: Cell<usize>,
    /// The mappings that addresses resolve to.
    watched: Vec<Watched>,
}

#[derive(Debug)]
struct Region {
    start: u64,
    length: u64,
    mapping: Arc<MmapRegion>,
    /// Where in `mapping` the region begins.
    base: u64,
}

impl GuestView {
    /// Prepares `table`. Regions whose file cannot be identified count as ordinary memory.
    #[must_use]
    pub fn new(table: &GuestMemoryMmap, device: &DeviceMemory) -> Self {
        let mut regions: Vec<Region> = table
            .iter()
            .map(|region| {
                let start = region.start_addr().0;
                let length = region.len();
                let alias = region.file_offset().filter(|at| {
                    FileIdentity::of(at.file()).is_ok_and(|id| id == device.identity())
                        && at
                            .start()
                            .checked_add(length)
                            .is_some_and(|end| end <= device.size())
                });
                match alias {
                    Some(at) => Region {
                        start,
                        length,
                        mapping: Arc::clone(device.mapping()),
                        base: at.start(),
                    },
                    None => Region {
                        start,
                        length,
                        mapping: region.get_mmap(),
                        base: 0,
                    },
                }
            })
            .collect();
        regions.sort_by_key(|region| region.start);
        let of_guest = regions
            .iter()
            .filter(|region| !Arc::ptr_eq(&region.mapping, device.mapping()))
            .map(|region| Watched::new(Arc::clone(&region.mapping), Owner::Guest));
        Self {
            watched: std::iter::once(device.watched().clone())
                .chain(of_guest)
                .collect(),
            regions,
            recent: Cell::new(0),
        }
    }

    /// All memory that a request can reach: device memory and the mappings of guest memory.
    #[must_use]
    pub fn watched(&self) -> &[Watched] {
        &self.watched
    }

    /// The `length` bytes at `address`, when they lie in one region.
    ///
    /// # Errors
    ///
    /// The range is not contained in one region.
    pub fn contiguous(
        &self,
        address: GuestAddress,
        length: usize,
    ) -> Result<VolatileSlice<'_>, AddressError> {
        let slice = self.prefix(address.0, length as u64)?;
        if slice.len() == length {
            Ok(slice)
        } else {
            Err(AddressError(address.0))
        }
    }

    /// Appends the `length` bytes at `address` to `pieces`, one piece for each region that they
    /// cross; nothing for a length of 0.
    ///
    /// # Errors
    ///
    /// Part of the range is outside of guest memory; the pieces before it have been appended.
    pub fn resolve<'m>(
        &'m self,
        address: GuestAddress,
        length: u32,
        pieces: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<(), AddressError> {
        let mut address = address.0;
        let mut left = u64::from(length);
        while left > 0 {
            let slice = self.prefix(address, left)?;
            left -= slice.len() as u64;
            address = match address.checked_add(slice.len() as u64) {
                Some(next) => next,
                None if left == 0 => break,
                None => return Err(AddressError(u64::MAX)),
            };
            pieces.push(slice);
        }
        Ok(())
    }

    /// The part of the `length` bytes at `address` that lies in the region there; at least one
    /// byte, unless `length` is 0.
    // Inlined, since a slice returned through memory is stored in single words and immediately
    // loaded in pairs of words, which cannot be forwarded from the stores.
    #[inline(always)]
    fn prefix(&self, address: u64, length: u64) -> Result<VolatileSlice<'_>, AddressError> {
        let region = self.find(address).ok_or(AddressError(address))?;
        let inside = address - region.start;
        let count = length.min(region.length - inside);
        let outside = |_| AddressError(address);
        let at = usize::try_from(region.base + inside).map_err(|_| AddressError(address))?;
        let count = usize::try_from(count).map_err(|_| AddressError(address))?;
        region.mapping.get_slice(at, count).map_err(outside)
    }

    fn find(&self, address: u64) -> Option<&Region> {
        let holds = |region: &&Region| {
            address
                .checked_sub(region.start)
                .is_some_and(|inside| inside < region.length)
        };
        if let Some(region) = self.regions.get(self.recent.get()).filter(holds) {
            return Some(region);
        }
        let after = self
            .regions
            .partition_point(|region| region.start <= address);
        let index = after.checked_sub(1)?;
        let region = self.regions.get(index).filter(holds)?;
        self.recent.set(index);
        Some(region)
    }
}
