//! The three parts of a split virtqueue in guest memory.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::{GuestView, MAX_QUEUE_SIZE, RingError};

/// Bytes of a descriptor (virtio 1.2, section 2.7.5).
pub(super) const DESCRIPTOR_SIZE: usize = 16;

const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`: the other side need not be notified.
const SUPPRESS: u16 = 1;

/// Offset of the index and of the entries, in the available and the used ring alike.
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// A descriptor, as it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) address: GuestAddress,
    pub(super) length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    pub(super) fn from_bytes(b: &[u8; DESCRIPTOR_SIZE]) -> Self {
        let address = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Self {
            address: GuestAddress(address),
            length: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            flags: u16::from_le_bytes([b[12], b[13]]),
            next: u16::from_le_bytes([b[14], b[15]]),
        }
    }

    pub(super) fn next(&self) -> Option<u16> {
        (self.flags & FLAG_NEXT != 0).then_some(self.next)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.flags & FLAG_WRITE != 0
    }

    pub(super) fn is_indirect(&self) -> bool {
        self.flags & FLAG_INDIRECT != 0
    }
}

/// A ring whose placement has been checked: inside of it, no access can fail.
#[derive(Debug)]
pub struct Ring<'m> {
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    event_index: bool,
}

impl<'m> Ring<'m> {
    /// Finds the ring that `queue` describes in guest memory.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`] and [`RingError::Placement`].
    pub fn new(queue: &Queue, view: &'m GuestView) -> Result<Self, RingError> {
        let size = queue.size();
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(u32::from(size)));
        }
        let entries = usize::from(size);
        let place = |part, address: u64, length, align| {
            view.contiguous(GuestAddress(address), length)
                .ok()
                .filter(|slice| {
                    address.is_multiple_of(align)
                        // A region may be mapped from an offset that is not page-aligned; the
                        // atomic accesses below need host addresses to be aligned as well.
                        && (slice.ptr_guard().as_ptr() as u64).is_multiple_of(align.min(4))
                })
                .ok_or(RingError::Placement { part, address })
        };
        Ok(Self {
            descriptors: place(
                "descriptor table",
                queue.desc_table(),
                DESCRIPTOR_SIZE * entries,
                16,
            )?,
            available: place("available ring", queue.avail_ring(), 6 + 2 * entries, 2)?,
            used: place("used ring", queue.used_ring(), 6 + 8 * entries, 4)?,
            size,
            event_index: queue.event_idx_enabled(),
        })
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    fn load(slice: &VolatileSlice<'_>, at: usize, order: Ordering) -> u16 {
        // `new` has checked extent and alignment, so that this cannot fail; 0 is a valid value.
        u16::from_le(slice.load(at, order).unwrap_or_default())
    }

    fn store(slice: &VolatileSlice<'_>, at: usize, value: u16, order: Ordering) {
        let stored = slice.store(value.to_le(), at, order);
        debug_assert!(stored.is_ok(), "checked in new");
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// How many chains are available beyond `next`.
    pub(super) fn available(&self, next: u16) -> Result<u16, RingError> {
        // Pairs with the driver's barrier between its entries and its index.
        let index = Self::load(&self.available, INDEX, Ordering::Acquire);
        let ahead = index.wrapping_sub(next);
        if ahead > self.size {
            return Err(RingError::AvailableIndex {
                index,
                ahead,
                size: self.size,
            });
        }
        Ok(ahead)
    }

    /// The head of the chain in slot `index`.
    pub(super) fn head(&self, index: u16) -> u16 {
        let at = ENTRIES + 2 * self.slot(index);
        Self::load(&self.available, at, Ordering::Relaxed)
    }

    /// Descriptor `index` of the table.
    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, RingError> {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let at = DESCRIPTOR_SIZE * usize::from(index);
        self.descriptors
            .read_slice(&mut bytes, at)
            .map_err(|_| RingError::DescriptorIndex {
                index,
                size: usize::from(self.size),
            })?;
        Ok(Descriptor::from_bytes(&bytes))
    }

    /// Writes a used entry; the driver sees it after [`Ring::publish`].
    pub(super) fn write_used(&self, index: u16, id: u32, written: u32) {
        let at = ENTRIES + 8 * self.slot(index);
        for (at, value) in [(at, id), (at + 4, written)] {
            // Two words rather than eight bytes, which are copied one by one.
            let stored = self.used.store(value.to_le(), at, Ordering::Relaxed);
            debug_assert!(stored.is_ok(), "checked in new");
        }
    }

    /// Shows the driver all used entries before `next`.
    pub(super) fn publish(&self, next: u16) {
        Self::store(&self.used, INDEX, next, Ordering::Release);
    }

    /// Whether the driver wants a call for the entries from `old` up to `new`, which have just
    /// been published (virtio 1.2, section 2.7.7.2).
    pub(super) fn wants_call(&self, old: u16, new: u16) -> bool {
        // The driver stores its wish, then looks at the used index: here it is the other way
        // round, and of the two at least one must see the other's store.
        fence(Ordering::SeqCst);
        if self.event_index {
            let at = ENTRIES + 2 * usize::from(self.size);
            let event = Self::load(&self.available, at, Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            Self::load(&self.available, 0, Ordering::Relaxed) & SUPPRESS == 0
        }
    }

    /// Asks the driver for a kick when it makes anything beyond `next` available. Look at the
    /// ring once more afterwards: what came before the wish was seen is not announced.
    pub(super) fn request_kick(&self, next: u16) {
        if self.event_index {
            let at = ENTRIES + 8 * usize::from(self.size);
            Self::store(&self.used, at, next, Ordering::Relaxed);
        } else {
            Self::store(&self.used, 0, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Tells the driver that kicks are not needed for now. With the event index there is nothing
    /// to say: an old event makes no kick.
    pub(super) fn suppress_kicks(&self) {
        if !self.event_index {
            Self::store(&self.used, 0, SUPPRESS, Ordering::Relaxed);
        }
    }
}
