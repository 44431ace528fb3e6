//! The thread that runs one ring.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::polling::Polling;
use super::session::Session;
use super::vring::{Memory, Notifiers, Vring, Wakeup, notify};
use crate::engine::Engine;
use crate::fault::Injector;
use crate::memory::DeviceMemory;
use crate::metrics::QueueMetrics;
use crate::queue::{GuestView, Pass, Processor, RingError, Surroundings};
use crate::sandbox::{Role, confine_thread};

/// Everything that a worker is made of.
pub(super) struct WorkerParts {
    pub(super) queue_index: u16,
    pub(super) vring: Vring,
    pub(super) memory: Memory,
    pub(super) session: Arc<Session>,
}

/// Starts the worker of a ring; it ends after [`Vring::stop`].
///
/// # Errors
///
/// The thread cannot be made.
pub(super) fn spawn(parts: WorkerParts) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(format!("queue {}", parts.queue_index))
        .spawn(move || {
            let device = parts.session.device();
            if let Err(e) = confine_thread(Role::Queue, device.settings().seccomp) {
                log::error!("{}: {e}; queue stopped", device.name());
                return;
            }
            let index = parts.queue_index;
            let metrics = Arc::clone(&device.metrics().queues()[usize::from(index)]);
            let injector = Injector::new(&device.settings().faults, index);
            let engine = Engine::new(Arc::clone(device.memory()));
            let processor = Processor::new(engine, Arc::clone(&metrics), injector);
            Worker {
                notifiers: parts.vring.notifiers(),
                notifiers_version: 0,
                setup_version: 0,
                view: None,
                processor,
                polling: Polling::new(device.settings().poll),
                metrics,
                name: format!(
                    "{} queue {}",
                    parts.session.device().name(),
                    parts.queue_index
                ),
                parts,
            }
            .run();
        })
}

struct Worker {
    /// For log lines: which device and queue.
    name: String,
    parts: WorkerParts,
    processor: Processor,
    polling: Polling,
    metrics: Arc<QueueMetrics>,
    view: Option<CurrentView>,
    notifiers: Notifiers,
    notifiers_version: u64,
    setup_version: u64,
}

/// The view of a memory table, kept as long as the table is the current one.
struct CurrentView {
    table: Arc<GuestMemoryMmap>,
    view: GuestView,
}

/// What a worker does next.
enum Next {
    Pass,
    /// Nothing is available: a kick will come.
    AwaitKick,
    /// The next request waits for its time.
    AwaitTime(Instant),
    /// The ring does not run, and kicks stay where they are until it does.
    AwaitChange,
}

/// What a pass may do while it holds the ring's lock.
struct DuringPass<'a> {
    call: Option<&'a File>,
    vring: &'a Vring,
    polling: &'a mut Polling,
}

impl Surroundings for DuringPass<'_> {
    fn call(&mut self) {
        if let Some(call) = self.call {
            notify(call);
        }
    }

    fn look_again(&mut self) -> bool {
        if self.vring.is_wanted() {
            self.polling.interrupted();
            return false;
        }
        self.polling.go_on()
    }

    fn found(&mut self) {
        self.polling.found();
    }
}

impl Worker {
    fn run(&mut self) {
        while !self.parts.vring.is_stopping() {
            let (kick, limit) = match self.step() {
                Next::Pass => continue,
                Next::AwaitKick => (self.notifiers.kick.clone(), None),
                Next::AwaitTime(time) => (None, Some(time)),
                Next::AwaitChange => (None, None),
            };
            let asleep = Instant::now();
            match self.parts.vring.sleep(kick.as_deref(), limit) {
                Ok(Wakeup::Look) => {}
                Ok(Wakeup::Kick) => {
                    self.metrics.kicks.add(1);
                    self.polling.slept(asleep.elapsed());
                }
                Ok(Wakeup::KickDead(e)) => {
                    log::warn!(
                        "{}: kick descriptor unusable: {e}; the front end has to set another",
                        self.name
                    );
                    if let Some(kick) = kick {
                        self.parts.vring.drop_kick(&kick);
                    }
                }
                Err(e) => {
                    log::error!("{}: cannot wait for kicks: {e}; queue stopped", self.name);
                    return;
                }
            }
        }
    }

    fn step(&mut self) -> Next {
        let vring = self.parts.vring.clone();
        let mut state = vring.for_pass();
        // Under the lock: who replaces a notifier then waits for it once, and knows that the old one
        // is not used any more.
        let version = vring.notifiers_version();
        if version != self.notifiers_version {
            self.notifiers = vring.notifiers();
            self.notifiers_version = version;
        }
        let runs = state.get_queue().ready() && state.is_enabled() && !vring.is_broken();
        if !runs || !self.parts.session.is_open() {
            // Do not keep memory mapped that the front end may have taken back.
            self.view = None;
            return Next::AwaitChange;
        }
        let setup_version = vring.setup_version();
        if setup_version != self.setup_version {
            self.setup_version = setup_version;
            self.processor.restart();
        }
        let result = match vring.bad_size() {
            Some(error) => Err(error),
            None => {
                let device = self.parts.session.device().memory();
                let view = current_view(&mut self.view, &self.parts.memory, device);
                let mut around = DuringPass {
                    call: self.notifiers.call.as_deref(),
                    vring: &vring,
                    polling: &mut self.polling,
                };
                self.processor
                    .pass(state.get_queue_mut(), view, &mut around)
            }
        };
        drop(state);
        match result {
            Ok(Pass::More) => Next::Pass,
            Ok(Pass::Idle) => Next::AwaitKick,
            Ok(Pass::Held(until)) => Next::AwaitTime(until),
            Err(error) => {
                self.report(error);
                if error == RingError::MemoryVanished {
                    // Zeroes are mapped in its place now, which no other ring would notice.
                    self.parts.session.break_down();
                } else {
                    vring.break_down();
                }
                Next::AwaitChange
            }
        }
    }

    fn report(&self, error: RingError) {
        let Some(held_back) = self.parts.session.device().log_limit().pass() else {
            return;
        };
        let more = match held_back {
            0 => String::new(),
            count => format!(" ({count} such lines held back)"),
        };
        log::error!(
            "{}: ring corrupt, queue stopped until the driver resets it: {error}{more}",
            self.name
        );
    }
}

fn current_view<'v>(
    slot: &'v mut Option<CurrentView>,
    memory: &Memory,
    device: &DeviceMemory,
) -> &'v GuestView {
    let table = memory.memory();
    let stale = slot
        .as_ref()
        .is_none_or(|current| !std::ptr::eq(&*table, Arc::as_ptr(&current.table)));
    if stale {
        *slot = None;
    }
    &slot
        .get_or_insert_with(|| CurrentView {
            view: GuestView::new(&table, device),
            table: table.into_inner(),
        })
        .view
}
