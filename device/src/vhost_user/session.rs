//! The state that belongs to one front end.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::{
    device::Device,
    vring::{Memory, Vring},
};
use crate::{lock::lock, memory::FileIdentity};

/// Longest time for which requests are held.
const GATE_LIMIT: Duration = Duration::from_secs(5);

/// The rings of one front end, and the state that all of them share.
#[derive(Debug)]
pub(super) struct Session {
    device: Arc<Device>,
    memory: Memory,
    rings: Mutex<Vec<Vring>>,
    /// No request is taken while this is false.
    gate_open: AtomicBool,
    /// When the gate opens by itself, while it is closed.
    deadline: Mutex<Option<Instant>>,
    /// The latest memory table that was accepted.
    table: Mutex<Arc<GuestMemoryMmap>>,
    /// The log has named the remedy for guest memory that is not shared.
    unshared_reported: AtomicBool,
    /// The front end has asked for the features, so that it is one.
    handshake_started: AtomicBool,
}

impl Session {
    pub(super) fn new(device: Arc<Device>, memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            device,
            memory,
            rings: Mutex::default(),
            gate_open: AtomicBool::new(true),
            deadline: Mutex::default(),
            table: Mutex::default(),
            handshake_started: AtomicBool::new(false),
            unshared_reported: AtomicBool::new(false),
        })
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Guest memory, as the front end's latest memory table describes it.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether the memory table contains the BAR: guest memory maps the first byte of device
    /// memory.
    pub(super) fn maps_device_memory(&self) -> bool {
        let device = self.device.memory().identity();
        self.memory.memory().iter().any(|region| {
            region.file_offset().is_some_and(|at| {
                at.start() == 0 && FileIdentity::of(at.file()).is_ok_and(|id| id == device)
            })
        })
    }

    /// Accepts the memory table that the front end has just changed; whether that was done with
    /// `SET_MEM_TABLE`, which replaces all regions.
    ///
    /// `ADD_MEM_REG` and `REM_MEM_REG` keep the others. They belong to a protocol feature that is
    /// not offered, but the `vhost` crate accepts each one that a front end claims to have
    /// negotiated, and the number of regions is limited by `SET_MEM_TABLE` alone.
    pub(super) fn accept_table(&self) -> bool {
        let new = self.memory.memory().into_inner();
        let mut table = lock(&self.table);
        let kept = new
            .iter()
            .any(|region| table.iter().any(|old| std::ptr::eq(region, old)));
        if kept || new.num_regions() == 0 {
            return false;
        }
        *table = new;
        true
    }

    /// Reports, once, that guest memory was named which the front end has not shared.
    pub(super) fn report_unshared(&self) {
        if !self.unshared_reported.swap(true, Ordering::SeqCst) {
            log::warn!(
                "{}: guest memory was named that the front end does not share; if the guest is not \
                 at fault, create all of its memory with share=on",
                self.device.name()
            );
        }
    }

    pub(super) fn set_rings(&self, rings: Vec<Vring>) {
        *lock(&self.rings) = rings;
    }

    pub(super) fn is_open(&self) -> bool {
        self.gate_open.load(Ordering::SeqCst) || self.open_gate_after_deadline()
    }

    /// When the gate opens by itself, if it is closed.
    pub(super) fn gate_deadline(&self) -> Option<Instant> {
        *lock(&self.deadline)
    }

    fn open_gate_after_deadline(&self) -> bool {
        {
            let mut deadline = lock(&self.deadline);
            if deadline.is_none_or(|deadline| Instant::now() < deadline) {
                return deadline.is_none();
            }
            *deadline = None;
            self.gate_open.store(true, Ordering::SeqCst);
        }
        log::warn!(
            "{}: the front end does not answer the request to map the BAR; continuing without a BAR",
            self.device.name()
        );
        self.wake();
        true
    }

    /// Holds all requests, but no longer than [`GATE_LIMIT`]. Kicks stay unread until the gate
    /// opens.
    pub(super) fn close_gate(&self) {
        let mut deadline = lock(&self.deadline);
        *deadline = Instant::now().checked_add(GATE_LIMIT);
        self.gate_open.store(false, Ordering::SeqCst);
    }

    /// Opens the gate; `false` when it has opened by itself since it was closed.
    pub(super) fn open_gate(&self) -> bool {
        let in_time = {
            let mut deadline = lock(&self.deadline);
            self.gate_open.store(true, Ordering::SeqCst);
            deadline.take().is_some()
        };
        self.wake();
        in_time
    }

    /// Records that the handshake has started, and so that a front end is connected.
    pub(super) fn note_handshake(&self) {
        if !self.handshake_started.swap(true, Ordering::SeqCst) {
            log::info!("{}: front end connected", self.device.name());
            self.device.metrics().front_ends.add(1);
        }
    }

    pub(super) fn has_handshake_started(&self) -> bool {
        self.handshake_started.load(Ordering::SeqCst)
    }

    /// Releases the front end's rings and memory.
    pub(super) fn end(&self) {
        self.set_rings(Vec::new());
        // Poisoned only if a holder panicked, and the memory is not used any more.
        let table = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        table.replace(GuestMemoryMmap::new());
        *lock(&self.table) = Arc::default();
    }

    /// Makes every worker check its rings and this session.
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

    /// Stops every ring, after a failure of the memory that they share.
    pub(super) fn mark_broken(&self) {
        for ring in lock(&self.rings).iter() {
            ring.mark_broken();
            ring.wake();
        }
    }
}
