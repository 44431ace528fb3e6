//! Walking one descriptor chain.

use vm_memory::{Bytes, VolatileSlice};

use super::{
    descriptor::{DESCRIPTOR_SIZE, Descriptor},
    error::RingError,
    guest_view::GuestView,
    ring::Ring,
};

/// Most descriptors of one chain; a longer one is a [`ChainDefect::Malformed`].
pub const MAX_SEGMENTS: u16 = 1024;

/// [`MAX_SEGMENTS`], for counting.
const LIMIT: usize = MAX_SEGMENTS as usize;

/// Most pieces of one direction: a descriptor that crosses regions yields more than one.
const MAX_PIECES: usize = LIMIT + 64;

/// Memory for walking chains, kept between passes so that no request allocates any.
#[derive(Debug)]
pub struct Scratch {
    readable: Vec<VolatileSlice<'static>>,
    writable: Vec<VolatileSlice<'static>>,
    table: Vec<[u8; DESCRIPTOR_SIZE]>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            readable: Vec::with_capacity(MAX_PIECES),
            writable: Vec::with_capacity(MAX_PIECES),
            table: vec![[0; DESCRIPTOR_SIZE]; LIMIT],
        }
    }
}

/// Why a chain cannot be a request although the ring is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainDefect {
    /// Too many descriptors, or a device-readable one after a device-writable one.
    Malformed,
    /// A descriptor refers to memory outside of guest memory.
    Address,
}

/// One request's memory, as the driver describes it.
#[derive(Debug)]
pub struct Chain<'m> {
    readable: Vec<VolatileSlice<'m>>,
    writable: Vec<VolatileSlice<'m>>,
    table: Vec<[u8; DESCRIPTOR_SIZE]>,
    /// Device-writable bytes that the caller needs even of a defective chain, for its answer.
    response_bytes: u64,
    writable_bytes: u64,
    /// A part of the answer's memory is out of reach. What follows it is data, and no memory for
    /// the answer.
    response_unreachable: bool,
    defect: Option<ChainDefect>,
}

/// Moves a vector's allocation to another lifetime. The vector is empty and element sizes agree, so
/// that `collect` reuses the allocation.
fn recycle<'to>(mut from: Vec<VolatileSlice<'_>>) -> Vec<VolatileSlice<'to>> {
    from.clear();
    from.into_iter()
        .map(|_| VolatileSlice::from(&mut [][..]))
        .collect()
}

impl<'m> Chain<'m> {
    /// An empty chain that uses the memory of `scratch`. Of a defective chain at least the first
    /// `response_bytes` device-writable bytes are collected, if they are valid.
    #[must_use]
    pub fn new(scratch: Scratch, response_bytes: u64) -> Self {
        Self {
            readable: recycle(scratch.readable),
            writable: recycle(scratch.writable),
            table: scratch.table,
            response_bytes,
            writable_bytes: 0,
            response_unreachable: false,
            defect: None,
        }
    }

    /// Returns the memory.
    #[must_use]
    pub fn into_scratch(self) -> Scratch {
        Scratch {
            readable: recycle(self.readable),
            writable: recycle(self.writable),
            table: self.table,
        }
    }

    /// Device-readable memory, in order.
    #[must_use]
    pub fn readable(&self) -> &[VolatileSlice<'m>] {
        &self.readable
    }

    /// Device-writable memory, in order; up to the defect when there is one.
    #[must_use]
    pub fn writable(&self) -> &[VolatileSlice<'m>] {
        &self.writable
    }

    /// Why the chain cannot be a request, if it cannot.
    #[must_use]
    pub fn defect(&self) -> Option<ChainDefect> {
        self.defect
    }

    /// Walks the chain that begins at `head`.
    ///
    /// # Errors
    ///
    /// The chain cannot be followed: the ring is corrupt. Anything less is a [`ChainDefect`].
    pub(super) fn walk(
        &mut self,
        head: u16,
        ring: &Ring<'m>,
        view: &'m GuestView,
    ) -> Result<(), RingError> {
        self.readable.clear();
        self.writable.clear();
        self.writable_bytes = 0;
        self.response_unreachable = false;
        self.defect = None;

        let mut index = head;
        let mut count = 0;
        loop {
            if index >= ring.size() {
                return Err(RingError::DescriptorIndex {
                    index,
                    size: usize::from(ring.size()),
                });
            }
            if count == ring.size() {
                return Err(RingError::Circular { head });
            }
            let descriptor = ring.descriptor(index)?;
            count += 1;
            if descriptor.is_indirect() {
                if descriptor.next().is_some() {
                    return Err(RingError::MisplacedIndirect { index });
                }
                let before = usize::from(count) - 1;
                return self.walk_indirect(head, before, &descriptor, view);
            }
            self.add(&descriptor, usize::from(count), view);
            match descriptor.next() {
                Some(next) => index = next,
                None => return Ok(()),
            }
        }
    }

    /// Walks the chain inside of an indirect table, which ends the chain from `head`; `before`
    /// descriptors of that chain precede the table.
    fn walk_indirect(
        &mut self,
        head: u16,
        before: usize,
        indirect: &Descriptor,
        view: &'m GuestView,
    ) -> Result<(), RingError> {
        let length = indirect.length as usize;
        if length == 0 || !length.is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(RingError::IndirectLength {
                length: indirect.length,
            });
        }
        let entries = length / DESCRIPTOR_SIZE;
        let fetched = entries.min(LIMIT);
        self.fetch_table(indirect, fetched, view)?;

        let mut index = 0;
        for count in 1..=fetched {
            if usize::from(index) >= entries {
                return Err(RingError::DescriptorIndex {
                    index,
                    size: entries,
                });
            }
            let Some(bytes) = self
                .table
                .get(usize::from(index))
                .filter(|_| usize::from(index) < fetched)
            else {
                break;
            };
            let descriptor = Descriptor::from_bytes(bytes);
            if descriptor.is_indirect() {
                return Err(RingError::MisplacedIndirect { index });
            }
            self.add(&descriptor, before + count, view);
            match descriptor.next() {
                Some(next) => index = next,
                None => return Ok(()),
            }
        }
        if entries > LIMIT {
            self.defect.get_or_insert(ChainDefect::Malformed);
            return Ok(());
        }
        Err(RingError::Circular { head })
    }

    /// Copies the first `entries` descriptors of an indirect table into private memory.
    fn fetch_table(
        &mut self,
        indirect: &Descriptor,
        entries: usize,
        view: &'m GuestView,
    ) -> Result<(), RingError> {
        let outside = RingError::IndirectAddress {
            address: indirect.address.0,
        };
        let bytes = self.table[..entries].as_flattened_mut();
        if let Ok(table) = view.contiguous(indirect.address, bytes.len()) {
            return table.read_slice(bytes, 0).map_err(|_| outside);
        }
        // Rare: the table crosses regions.
        let mut pieces = Vec::new();
        let length = u32::try_from(bytes.len()).map_err(|_| outside)?;
        view.resolve(indirect.address, length, &mut pieces)
            .map_err(|_| outside)?;
        let mut at = 0;
        for piece in pieces {
            at += piece.copy_to(&mut bytes[at..]);
        }
        Ok(())
    }

    /// Adds the memory of the `count`th descriptor. After a defect only memory for the response is
    /// still added.
    fn add(&mut self, descriptor: &Descriptor, count: usize, view: &'m GuestView) {
        let writable = descriptor.is_writable();
        if self.defect.is_some()
            && (!writable
                || self.response_unreachable
                || self.writable_bytes >= self.response_bytes)
        {
            return;
        }
        if !writable && !self.writable.is_empty() {
            // Virtio 1.2, section 2.7.4.2: readable descriptors come first.
            self.defect = Some(ChainDefect::Malformed);
            return;
        }
        let pieces = if writable {
            &mut self.writable
        } else {
            &mut self.readable
        };
        if count > LIMIT || pieces.len() >= MAX_PIECES {
            self.defect.get_or_insert(ChainDefect::Malformed);
            return;
        }
        if view
            .resolve(descriptor.address, descriptor.length, pieces)
            .is_err()
        {
            self.defect.get_or_insert(ChainDefect::Address);
            self.response_unreachable |= writable;
            return;
        }
        if writable {
            self.writable_bytes += u64::from(descriptor.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_memory_is_reused_between_passes() {
        let scratch = Scratch::default();
        let before = (scratch.readable.as_ptr(), scratch.writable.as_ptr());
        let scratch = Chain::new(scratch, 0).into_scratch();
        assert_eq!(
            before,
            (scratch.readable.as_ptr(), scratch.writable.as_ptr())
        );
        assert!(scratch.readable.capacity() >= MAX_PIECES);
        assert!(scratch.writable.capacity() >= MAX_PIECES);
    }
}
