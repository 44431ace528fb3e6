//! The driver's side of a ring, optimized for speed: all addresses are resolved once.

use std::{
    fs::File,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use rustix::event::{PollFd, PollFlags};
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

/// Guest-physical base of the guest's memory.
pub const BASE: u64 = 0;

#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    pub address: u64,
    pub length: u32,
    pub writable: bool,
}

/// A ring with one indirect table for each slot, with the event index.
pub struct FastRing {
    memory: Arc<MmapRegion>,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    tables: u64,
    next_available: u16,
    published: u16,
    next_used: u16,
    pub kick: File,
    pub call: File,
}

/// Most descriptors of a slot's table.
const TABLE: u64 = 1024;

impl FastRing {
    pub fn new(memory: Arc<MmapRegion>, size: u16) -> Self {
        let event = || {
            let flags = rustix::event::EventfdFlags::NONBLOCK;
            File::from(rustix::event::eventfd(0, flags).unwrap())
        };
        Self {
            memory,
            size,
            descriptors: BASE,
            available: BASE + 0x4000,
            used: BASE + 0x8000,
            tables: BASE + 0x1_0000,
            next_available: 0,
            published: 0,
            next_used: 0,
            kick: event(),
            call: event(),
        }
    }

    fn store<T: vm_memory::AtomicAccess>(&self, address: u64, value: T) {
        let at = (address - BASE) as usize;
        let memory = self.memory.get_slice(at, size_of::<T>()).unwrap();
        memory.store(value, 0, Ordering::Relaxed).unwrap();
    }

    fn load<T: vm_memory::AtomicAccess>(&self, address: u64) -> T {
        let at = (address - BASE) as usize;
        let memory = self.memory.get_slice(at, size_of::<T>()).unwrap();
        memory.load(0, Ordering::Relaxed).unwrap()
    }

    fn descriptor(&self, at: u64, buffer: &Buffer, flags: u16, next: u16) {
        self.store(at, buffer.address);
        self.store(at + 8, buffer.length);
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Lays out the chain of a slot, for all the times that it is made available.
    pub fn write_table(&self, slot: u16, chain: &[Buffer]) {
        let table = self.tables + 16 * TABLE * u64::from(slot);
        for (index, buffer) in (0u16..).zip(chain) {
            let last = usize::from(index) + 1 == chain.len();
            let flags = u16::from(!last) | if buffer.writable { 2 } else { 0 };
            self.descriptor(table + 16 * u64::from(index), buffer, flags, index + 1);
        }
        let indirect = Buffer {
            address: table,
            length: 16 * chain.len() as u32,
            writable: false,
        };
        self.descriptor(self.descriptors + 16 * u64::from(slot), &indirect, 4, 0);
    }

    pub fn make_available(&mut self, slot: u16) {
        let at = u64::from(self.next_available & (self.size - 1));
        self.store(self.available + 4 + 2 * at, slot);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Publishes what was made available, and kicks if the device asks for that.
    pub fn publish(&mut self) {
        fence(Ordering::Release);
        self.store(self.available + 2, self.next_available);
        fence(Ordering::SeqCst);
        let event: u16 = self.load(self.used + 4 + 8 * u64::from(self.size));
        let (new, old) = (self.next_available, self.published);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        }
        self.published = new;
    }

    pub fn is_empty(&self) -> bool {
        let index: u16 = self.load(self.used + 2);
        fence(Ordering::Acquire);
        index == self.next_used
    }

    /// Sleeps until there is a used entry.
    pub fn wait(&self) {
        loop {
            self.store(
                self.available + 4 + 2 * u64::from(self.size),
                self.next_used,
            );
            fence(Ordering::SeqCst);
            if !self.is_empty() {
                return;
            }
            let mut fds = [PollFd::from_borrowed_fd(self.call.as_fd(), PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            let _ = rustix::io::read(&self.call, &mut [0u8; 8]);
        }
    }

    pub fn pop(&mut self) -> Option<u16> {
        if self.is_empty() {
            return None;
        }
        let at = u64::from(self.next_used & (self.size - 1));
        let id: u32 = self.load(self.used + 4 + 8 * at);
        self.next_used = self.next_used.wrapping_add(1);
        Some(id as u16)
    }
}
