//! A queue during one pass: its indices, kept by `virtio-queue`, and its ring in guest memory.

use virtio_queue::{Queue, QueueT};

use super::{chain::Chain, error::RingError, guest_view::GuestView, ring::Ring};
use crate::sigbus;

/// A queue whose ring has been located in guest memory. Methods are named as in `virtio-queue`,
/// whose own cannot be used: they look up each address again and trust the driver with more.
#[derive(Debug)]
pub struct ActiveQueue<'q, 'm> {
    queue: &'q mut Queue,
    ring: Ring<'m>,
    view: &'m GuestView,
}

impl<'q, 'm> ActiveQueue<'q, 'm> {
    /// Locates the ring of `queue` in guest memory.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`] and [`RingError::Placement`].
    pub fn new(queue: &'q mut Queue, view: &'m GuestView) -> Result<Self, RingError> {
        let ring = Ring::new(queue, view)?;
        Ok(Self { queue, ring, view })
    }

    /// Whether guest memory has been truncated, or the ring itself is missing: nothing that the
    /// driver and the device exchange can be trusted.
    #[inline]
    #[must_use]
    pub fn is_lost(&self) -> bool {
        sigbus::poison_exists() && (sigbus::is_guest_memory_truncated() || self.ring.is_lost())
    }

    /// Index of the next chain to be taken.
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Index of the next used entry to be written.
    #[must_use]
    pub fn next_used(&self) -> u16 {
        self.queue.next_used()
    }

    /// Number of chains that are available.
    ///
    /// # Errors
    ///
    /// [`RingError::AvailableIndex`].
    pub fn available(&self) -> Result<u16, RingError> {
        self.ring.available(self.queue.next_avail())
    }

    /// Reads the next available chain into `chain` and returns its head. The chain stays available
    /// until [`ActiveQueue::advance`].
    ///
    /// # Errors
    ///
    /// The chain cannot be followed.
    pub fn peek(&self, chain: &mut Chain<'m>) -> Result<u16, RingError> {
        let head = self.ring.head(self.queue.next_avail());
        chain.walk(head, &self.ring, self.view)?;
        Ok(head)
    }

    /// Takes the next chain off the available ring.
    pub fn advance(&mut self) {
        self.queue
            .set_next_avail(self.queue.next_avail().wrapping_add(1));
    }

    /// Adds a used entry; the driver sees it after [`ActiveQueue::publish_used`].
    pub fn add_used(&mut self, id: u32, length: u32) {
        self.ring.write_used(self.queue.next_used(), id, length);
        self.queue
            .set_next_used(self.queue.next_used().wrapping_add(1));
    }

    /// Makes all used entries visible to the driver.
    pub fn publish_used(&self) {
        self.ring.publish_used(self.queue.next_used());
    }

    /// Whether the driver asks for a notification about the entries published since the used index
    /// was `old`.
    #[must_use]
    pub fn needs_notification(&self, old: u16) -> bool {
        self.ring.needs_notification(old, self.queue.next_used())
    }

    /// Asks the driver for a kick at the next available chain; returns whether one is available
    /// already, for which there may be no kick.
    ///
    /// # Errors
    ///
    /// [`RingError::AvailableIndex`].
    pub fn enable_notification(&self) -> Result<bool, RingError> {
        self.ring.enable_notification(self.queue.next_avail());
        Ok(self.available()? > 0)
    }

    /// Tells the driver that kicks are not needed for now.
    pub fn disable_notification(&self) {
        self.ring.disable_notification();
    }
}
