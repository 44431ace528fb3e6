//! One ring and what runs it, a pass at a time.

use std::{
    fs::File,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::{
    polling::Polling,
    session::Session,
    vring::{Memory, Notifiers, Vring, notify},
};
use crate::{
    engine::Engine,
    fault::Injector,
    memory::DeviceMemory,
    metrics::QueueMetrics,
    queue::{Empty, GuestView, Pass, Processor, RingError, Surroundings},
    request::Served,
};

/// Everything that a queue is run with.
pub(super) struct QueueParts {
    pub(super) index: u16,
    pub(super) vring: Vring,
    pub(super) session: Arc<Session>,
}

/// What to do about a queue next.
pub(super) enum Next {
    /// Another step, at once.
    Step,
    /// Nothing is available: a kick will come.
    AwaitKick(Option<Arc<File>>),
    /// The next request waits for its time.
    AwaitTime(Instant),
    /// The ring does not run, and kicks stay where they are until it does.
    AwaitChange,
}

/// Runs one queue; its thread may run others in between.
pub(super) struct QueueRunner {
    /// For log lines: which device and queue.
    name: String,
    parts: QueueParts,
    /// Whether the thread has no other queue.
    alone: bool,
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

/// What a pass may do while it holds the ring's lock.
struct DuringPass<'a> {
    name: &'a str,
    call: Option<&'a File>,
    vring: &'a Vring,
    polling: &'a mut Polling,
    alone: bool,
}

impl Surroundings for DuringPass<'_> {
    fn call(&mut self) {
        if let Some(call) = self.call {
            notify(call);
        }
    }

    fn on_empty(&mut self) -> Empty {
        if self.vring.is_wanted() {
            self.polling.interrupted();
            return Empty::AskForKick;
        }
        match self.polling.go_on() {
            true if self.alone => Empty::LookAgain,
            true => Empty::Leave,
            false => Empty::AskForKick,
        }
    }

    fn found(&mut self) {
        self.polling.found();
    }

    fn served(&mut self, head: u16, served: Served) {
        log::debug!("{}: head {head}: {served}", self.name);
    }
}

impl QueueRunner {
    pub(super) fn new(parts: QueueParts, alone: bool) -> Self {
        let device = parts.session.device();
        let metrics = Arc::clone(&device.metrics().queues()[usize::from(parts.index)]);
        let injector = Injector::new(&device.settings().faults, parts.index);
        let engine = Engine::new(Arc::clone(device.memory()));
        Self {
            name: format!("{} queue {}", device.name(), parts.index),
            alone,
            processor: Processor::new(engine, Arc::clone(&metrics), injector),
            polling: Polling::new(device.settings().poll),
            metrics,
            view: None,
            notifiers: parts.vring.notifiers(),
            notifiers_version: 0,
            setup_version: 0,
            parts,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn vring(&self) -> &Vring {
        &self.parts.vring
    }

    /// Makes one pass over the ring, if it runs.
    pub(super) fn step(&mut self) -> Next {
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
                let view = current_view(&mut self.view, self.parts.session.memory(), device);
                let mut around = DuringPass {
                    name: &self.name,
                    call: self.notifiers.call.as_deref(),
                    vring: &vring,
                    polling: &mut self.polling,
                    alone: self.alone,
                };
                self.processor
                    .pass(state.get_queue_mut(), view, &mut around)
            }
        };
        if result.is_err() {
            // Before the lock is given back: whoever sets the ring up anew comes after that.
            vring.break_down();
        }
        drop(state);
        match result {
            Ok(Pass::More | Pass::Left) => Next::Step,
            Ok(Pass::Idle) => Next::AwaitKick(self.notifiers.kick.clone()),
            Ok(Pass::Held(until)) => Next::AwaitTime(until),
            Err(error) => {
                self.report(error);
                if error == RingError::MemoryVanished {
                    // Zeroes are mapped in its place now, which no other ring would notice.
                    self.parts.session.break_down();
                }
                Next::AwaitChange
            }
        }
    }

    /// Takes the kick that ended a sleep of `time`.
    pub(super) fn kicked(&mut self, kick: &Arc<File>, time: Duration) {
        match take_event(kick) {
            Ok(()) => {
                self.metrics.kicks.add(1);
                self.polling.slept(time);
            }
            Err(e) => {
                log::warn!(
                    "{}: kick descriptor unusable: {e}; the front end has to set another",
                    self.name
                );
                self.parts.vring.drop_kick(kick);
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

/// Empties an event counter that was seen to be ready.
fn take_event(kick: &File) -> io::Result<()> {
    let mut counter = [0u8; 8];
    match rustix::io::read(kick, &mut counter) {
        Ok(8) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
        Ok(count) => Err(io::Error::other(format!(
            "reads {count} bytes, where an event counter has 8"
        ))),
        Err(e) => Err(e.into()),
    }
}
