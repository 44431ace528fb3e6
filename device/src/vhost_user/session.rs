//! What belongs to one front end.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{
    server::Device,
    vring::{Memory, Vring, lock},
};
use crate::memory::FileIdentity;

/// The rings of one front end, and what all of them have to obey.
#[derive(Debug)]
pub(super) struct Session {
    device: Arc<Device>,
    memory: Memory,
    rings: Mutex<Vec<Vring>>,
    /// No request is served while this is closed.
    gate_open: AtomicBool,
    /// The front end has asked for the features: it is one.
    spoke: AtomicBool,
}

impl Session {
    pub(super) fn new(device: Arc<Device>, memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            device,
            memory,
            rings: Mutex::default(),
            gate_open: AtomicBool::new(true),
            spoke: AtomicBool::new(false),
        })
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Guest memory, as the front end's latest table has it.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether guest memory shows the first byte of device memory: the BAR is in the table.
    pub(super) fn shows_device_memory(&self) -> bool {
        let device = self.device.memory().identity();
        self.memory.memory().iter().any(|region| {
            region.file_offset().is_some_and(|at| {
                at.start() == 0 && FileIdentity::of(at.file()).is_ok_and(|id| id == device)
            })
        })
    }

    pub(super) fn set_rings(&self, rings: Vec<Vring>) {
        *lock(&self.rings) = rings;
    }

    pub(super) fn is_open(&self) -> bool {
        self.gate_open.load(Ordering::SeqCst)
    }

    /// Holds requests back. Kicks stay unread until the gate opens.
    pub(super) fn close_gate(&self) {
        self.gate_open.store(false, Ordering::SeqCst);
    }

    pub(super) fn open_gate(&self) {
        self.gate_open.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn note_speech(&self) {
        self.spoke.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_spoken(&self) -> bool {
        self.spoke.load(Ordering::SeqCst)
    }

    /// Lets go of the front end's rings and memory.
    pub(super) fn end(&self) {
        self.set_rings(Vec::new());
        // Poisoned only if a holder panicked, and the memory is not looked at any more.
        let table = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        table.replace(GuestMemoryMmap::new());
    }

    /// Makes every worker look around.
    pub(super) fn wake(&self) {
        for ring in lock(&self.rings).iter() {
            ring.wake();
        }
    }

    /// Waits for every ring's pass to end.
    pub(super) fn drain(&self) {
        for ring in lock(&self.rings).iter() {
            ring.drain();
            ring.wake();
        }
    }

    pub(super) fn all_stopped(&self) -> bool {
        lock(&self.rings)
            .iter()
            .all(|ring| !ring.get_ref().get_queue().ready())
    }

    /// Stops every ring: what they share has turned out to be broken.
    pub(super) fn break_down(&self) {
        for ring in lock(&self.rings).iter() {
            ring.break_down();
            ring.wake();
        }
    }
}
