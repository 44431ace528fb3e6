//! The driver's side of a split virtqueue, in guest memory.

use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guest::Guest;

/// The memory of one descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

impl Buffer {
    pub fn readable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: false,
        }
    }

    pub fn writable(address: u64, length: u32) -> Self {
        Self {
            address,
            length,
            writable: true,
        }
    }
}

/// A used entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub id: u32,
    pub written: u32,
}

/// Virtio 1.2, section 2.7.5.
pub mod descriptor_flags {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;
}
use descriptor_flags::{INDIRECT, NEXT, WRITE};

/// A ring as its driver sees it. Descriptors are not managed: each chain is laid out as an indirect
/// table at an address given by its slot, and uses the one descriptor of that slot.
pub struct DriverRing {
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub tables: u64,
    pub next_available: u16,
    pub next_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    pub event_index: bool,
}

/// Guest memory of one ring, tables included.
pub const RING_BYTES: u64 = 0x2_0000;

impl DriverRing {
    pub fn new(base: u64, size: u16, event_index: bool) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            size,
            descriptors: base,
            available: base + 0x4000,
            used: base + 0x5000,
            tables: base + 0x8000,
            next_available: 0,
            next_used: 0,
            kick: event(),
            call: event(),
            error: event(),
            event_index,
        }
    }

    pub fn write_descriptor(
        &self,
        guest: &Guest,
        table: u64,
        index: u16,
        bytes: (Buffer, u16, u16),
    ) {
        let (buffer, flags, next) = bytes;
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&buffer.address.to_le_bytes());
        raw[8..12].copy_from_slice(&buffer.length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        guest.write(table + 16 * u64::from(index), &raw);
    }

    /// Lays `chain` out in consecutive descriptors of `table`.
    pub fn write_chain(&self, guest: &Guest, table: u64, first: u16, chain: &[Buffer]) {
        for (index, buffer) in (first..).zip(chain) {
            let last = usize::from(index - first) + 1 == chain.len();
            let flags = if last { 0 } else { NEXT } | if buffer.writable { WRITE } else { 0 };
            self.write_descriptor(guest, table, index, (*buffer, flags, index.wrapping_add(1)));
        }
    }

    /// Puts `head` into the next available slot, and publishes it.
    pub fn make_available(&mut self, guest: &Guest, head: u16) {
        let slot = self.next_available % self.size;
        guest.write(
            self.available + 4 + 2 * u64::from(slot),
            &head.to_le_bytes(),
        );
        self.next_available = self.next_available.wrapping_add(1);
        fence(Ordering::SeqCst);
        guest.write(self.available + 2, &self.next_available.to_le_bytes());
    }

    /// Makes `chain` available through an indirect table. Up to eight buffers fit into a slot's
    /// table; longer ones go to slot 0, and no other slot may be in use then.
    pub fn submit(&mut self, guest: &Guest, chain: &[Buffer], slot: u16) {
        assert!(chain.len() <= 8 || slot == 0);
        let table = self.tables + 128 * u64::from(slot);
        self.write_chain(guest, table, 0, chain);
        let length = u32::try_from(16 * chain.len()).unwrap();
        let indirect = Buffer::readable(table, length);
        self.write_descriptor(guest, self.descriptors, slot, (indirect, INDIRECT, 0));
        self.make_available(guest, slot);
    }

    /// Makes `chain` available in the ring's own descriptors, from `first` on.
    pub fn submit_direct(&mut self, guest: &Guest, chain: &[Buffer], first: u16) {
        self.write_chain(guest, self.descriptors, first, chain);
        self.make_available(guest, first);
    }

    pub fn used_index(&self, guest: &Guest) -> u16 {
        let mut bytes = [0; 2];
        guest.read(self.used + 2, &mut bytes);
        fence(Ordering::SeqCst);
        u16::from_le_bytes(bytes)
    }

    pub fn pop_used(&mut self, guest: &Guest) -> Option<Used> {
        if self.used_index(guest) == self.next_used {
            return None;
        }
        let slot = self.next_used % self.size;
        let mut bytes = [0; 8];
        guest.read(self.used + 4 + 8 * u64::from(slot), &mut bytes);
        self.next_used = self.next_used.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Some(Used {
            id: word(0),
            written: word(4),
        })
    }

    /// Asks for a call at the next used entry; with the event index that has to be repeated.
    pub fn request_call(&self, guest: &Guest) {
        if self.event_index {
            let at = self.available + 4 + 2 * u64::from(self.size);
            guest.write(at, &self.next_used.to_le_bytes());
        } else {
            guest.write(self.available, &0u16.to_le_bytes());
        }
        fence(Ordering::SeqCst);
    }
}
