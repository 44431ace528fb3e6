//! The three parts of a split virtqueue in guest memory.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::{
    descriptor::{DESCRIPTOR_SIZE, Descriptor},
    error::RingError,
    guest_view::GuestView,
};
use crate::sigbus;

/// Largest queue.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver asks not to be notified.
const NO_INTERRUPT: u16 = 1;

/// `VIRTQ_USED_F_NO_NOTIFY`: the device asks not to be notified.
const NO_NOTIFY: u16 = 1;

/// Offset of the flags, the index and the entries, in the available and the used ring alike.
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// A ring in guest memory.
///
/// # Invariants
///
/// Each part lies in one region of guest memory, with the length that `size` gives it, and is
/// aligned as its fields need. So no access at an index below `size` can fail.
#[derive(Debug)]
pub(super) struct Ring<'m> {
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    event_idx: bool,
}

impl<'m> Ring<'m> {
    /// Locates the ring that `queue` describes in guest memory.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`] and [`RingError::Placement`].
    pub(super) fn new(queue: &Queue, view: &'m GuestView) -> Result<Self, RingError> {
        let size = queue.size();
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(u32::from(size)));
        }
        let entries = usize::from(size);
        let locate = |part, address: u64, length, align| {
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
        // INVARIANT: `locate` checks region, length and alignment of each part.
        Ok(Self {
            descriptors: locate(
                "descriptor table",
                queue.desc_table(),
                DESCRIPTOR_SIZE * entries,
                16,
            )?,
            available: locate("available ring", queue.avail_ring(), 6 + 2 * entries, 2)?,
            used: locate("used ring", queue.used_ring(), 6 + 8 * entries, 4)?,
            size,
            event_idx: queue.event_idx_enabled(),
        })
    }

    /// Whether pages of the ring are missing, so that it cannot be read or written any more.
    pub(super) fn is_lost(&self) -> bool {
        [&self.descriptors, &self.available, &self.used]
            .into_iter()
            .any(sigbus::is_poisoned)
    }

    /// Entries of the ring.
    pub(super) fn size(&self) -> u16 {
        self.size
    }

    fn load(slice: &VolatileSlice<'_>, at: usize, order: Ordering) -> u16 {
        // The type's invariant excludes an error; 0 is a valid value.
        u16::from_le(slice.load(at, order).unwrap_or_default())
    }

    fn store(slice: &VolatileSlice<'_>, at: usize, value: u16, order: Ordering) {
        let stored = slice.store(value.to_le(), at, order);
        debug_assert!(stored.is_ok(), "the type's invariant excludes an error");
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Number of chains available from `next_avail` on.
    pub(super) fn available(&self, next_avail: u16) -> Result<u16, RingError> {
        // Pairs with the driver's barrier between its entries and its index.
        let index = Self::load(&self.available, INDEX, Ordering::Acquire);
        let ahead = index.wrapping_sub(next_avail);
        if ahead > self.size {
            return Err(RingError::AvailableIndex {
                index,
                ahead,
                size: self.size,
            });
        }
        Ok(ahead)
    }

    /// The head of the chain in slot `index` of the available ring.
    pub(super) fn head(&self, index: u16) -> u16 {
        let at = ENTRIES + 2 * self.slot(index);
        Self::load(&self.available, at, Ordering::Relaxed)
    }

    /// Reads descriptor `index` of the table.
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

    /// Writes a used entry; the driver sees it after [`Ring::publish_used`].
    pub(super) fn write_used(&self, next_used: u16, id: u32, length: u32) {
        let at = ENTRIES + 8 * self.slot(next_used);
        for (at, value) in [(at, id), (at + 4, length)] {
            // Two words rather than eight bytes, which would be copied one by one.
            let stored = self.used.store(value.to_le(), at, Ordering::Relaxed);
            debug_assert!(stored.is_ok(), "the type's invariant excludes an error");
        }
    }

    /// Makes all used entries before `next_used` visible to the driver.
    pub(super) fn publish_used(&self, next_used: u16) {
        Self::store(&self.used, INDEX, next_used, Ordering::Release);
    }

    /// Whether the driver asks for a notification about the entries from `old` up to `new`, which
    /// have just been published (virtio 1.2, section 2.7.7.2).
    pub(super) fn needs_notification(&self, old: u16, new: u16) -> bool {
        // The driver stores its event or flags, then reads the used index; the order is reversed
        // here, so that at least one side sees the other's store.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let at = ENTRIES + 2 * usize::from(self.size);
            let event = Self::load(&self.available, at, Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            Self::load(&self.available, FLAGS, Ordering::Relaxed) & NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for a kick when it makes anything from `next_avail` on available. The caller
    /// has to check the ring once more afterwards: entries that came before the driver could see
    /// the request are not followed by a kick.
    pub(super) fn enable_notification(&self, next_avail: u16) {
        if self.event_idx {
            let at = ENTRIES + 8 * usize::from(self.size);
            Self::store(&self.used, at, next_avail, Ordering::Relaxed);
        } else {
            Self::store(&self.used, FLAGS, 0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Tells the driver that kicks are not needed for now. With the event index nothing has to be
    /// stored: an event index in the past causes no kick.
    pub(super) fn disable_notification(&self) {
        if !self.event_idx {
            Self::store(&self.used, FLAGS, NO_NOTIFY, Ordering::Relaxed);
        }
    }
}
