//! Running one ring, a pass at a time.

use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use vdma_protocol::Status;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::{
    busy_poll::BusyPoll,
    event,
    ring_state::StateCache,
    session::Session,
    vring::{Memory, Vring},
};
use crate::{
    engine::Engine,
    fault::FaultInterceptor,
    memory::DeviceMemory,
    metrics::QueueMetrics,
    processor::{Completion, IdleAction, Pass, PassError, PassThrough, Processor, QueueHost},
    virtqueue::{GuestView, RingError},
};

/// A queue of a front end, to be run.
pub(super) struct QueueParts {
    pub(super) index: u16,
    pub(super) vring: Vring,
    pub(super) session: Arc<Session>,
}

/// What to do about a queue next.
pub(super) enum Next {
    /// Make another step at once.
    Step,
    /// Nothing is available: wait for a kick.
    AwaitKick(Option<Arc<File>>),
    /// The next request is held until then.
    AwaitTime(Instant),
    /// The ring does not run: leave kicks unread and wait for a wake-up.
    AwaitChange,
}

impl Next {
    /// The kick descriptor to wait for, if any.
    pub(super) fn kick(&self) -> Option<&Arc<File>> {
        match self {
            Self::AwaitKick(kick) => kick.as_ref(),
            _ => None,
        }
    }

    /// The time to wait for, if any.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::AwaitTime(until) => Some(*until),
            _ => None,
        }
    }
}

/// Runs one queue; its thread may run others in between.
pub(super) struct QueueRunner {
    /// Device and queue, for log lines.
    name: String,
    parts: QueueParts,
    /// Whether the thread runs no other queue.
    alone: bool,
    processor: QueueProcessor,
    busy_poll: BusyPoll,
    metrics: Arc<QueueMetrics>,
    view: Option<CachedView>,
    state: StateCache,
    generation: u64,
}

/// The processor of a queue, compiled separately for queues with faults: the others do not pay for
/// them.
enum QueueProcessor {
    Plain(Processor<PassThrough>),
    WithFaults(Box<Processor<FaultInterceptor>>),
}

impl QueueProcessor {
    fn reset(&mut self) {
        match self {
            Self::Plain(processor) => processor.reset(),
            Self::WithFaults(processor) => processor.reset(),
        }
    }

    fn pass(
        &mut self,
        queue: &mut Queue,
        view: &GuestView,
        host: &mut impl QueueHost,
    ) -> Result<Pass, PassError> {
        match self {
            Self::Plain(processor) => processor.pass(queue, view, host),
            Self::WithFaults(processor) => processor.pass(queue, view, host),
        }
    }
}

/// A view of the memory table, valid as long as that table is the current one.
struct CachedView {
    table: Arc<GuestMemoryMmap>,
    view: GuestView,
}

/// The worker as a pass sees it while it holds the ring's lock.
struct Host<'a> {
    name: &'a str,
    call: Option<&'a Arc<File>>,
    vring: &'a Vring,
    session: &'a Session,
    busy_poll: &'a mut BusyPoll,
    alone: bool,
}

impl QueueHost for Host<'_> {
    fn call(&mut self) {
        if let Some(call) = self.call {
            self.vring.call_under_lock(call);
        }
    }

    fn idle_action(&mut self) -> IdleAction {
        if self.vring.is_contended() {
            self.busy_poll.interrupted();
            return IdleAction::EnableNotification;
        }
        match self.busy_poll.should_continue() {
            true if self.alone => IdleAction::Spin,
            true => IdleAction::Yield,
            false => IdleAction::EnableNotification,
        }
    }

    fn is_interrupted(&self) -> bool {
        self.vring.is_contended()
    }

    fn poll_succeeded(&mut self) {
        self.busy_poll.succeeded();
    }

    fn executed(&mut self, head: u16, completion: Completion) {
        if completion.status == Status::BAD_ADDRESS {
            self.session.report_unshared();
        }
        log::debug!("{}: head {head}: {completion}", self.name);
    }
}

impl QueueRunner {
    pub(super) fn new(parts: QueueParts, alone: bool) -> Self {
        let device = parts.session.device();
        let settings = device.settings();
        let metrics = Arc::clone(&device.metrics().queues()[usize::from(parts.index)]);
        let engine = Engine::new(Arc::clone(device.memory()));
        let faults = FaultInterceptor::new(&settings.faults, parts.index, Arc::clone(&metrics));
        let processor = match faults {
            None => {
                QueueProcessor::Plain(Processor::new(engine, Arc::clone(&metrics), PassThrough))
            }
            Some(faults) => {
                let processor = Processor::new(engine, Arc::clone(&metrics), faults);
                QueueProcessor::WithFaults(Box::new(processor))
            }
        };
        Self {
            name: format!("{} queue {}", device.name(), parts.index),
            alone,
            processor,
            busy_poll: BusyPoll::new(settings.poll),
            metrics,
            view: None,
            state: StateCache::default(),
            generation: 0,
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
        let result = self.pass_if_running();
        self.parts.vring.send_owed();
        let Some(result) = result else {
            return match self.parts.session.gate_deadline() {
                Some(deadline) => Next::AwaitTime(deadline),
                None => Next::AwaitChange,
            };
        };
        match result {
            Ok(Pass::Continue | Pass::Yielded) => Next::Step,
            Ok(Pass::AwaitKick) => Next::AwaitKick(self.state.last().notifiers.kick.clone()),
            Ok(Pass::HeldUntil(until)) => Next::AwaitTime(until),
            Err(error) => {
                self.report(error);
                if error == PassError::GuestMemory {
                    // Zeroes are mapped in its place now, which no other ring would notice.
                    self.parts.session.mark_broken();
                }
                Next::AwaitChange
            }
        }
    }

    /// Makes one pass under the ring's lock; `None` when the ring does not run. A ring that fails
    /// is marked before the lock is released: whatever reconfigures it comes after that.
    fn pass_if_running(&mut self) -> Option<Result<Pass, PassError>> {
        let Self {
            parts: QueueParts { vring, session, .. },
            ..
        } = self;
        let mut queue = vring.lock_for_pass();
        let state = vring.refresh(&mut self.state);
        let is_held = !session.is_open() || state.broken || state.moving;
        if is_held || !queue.get_queue().ready() || !queue.is_enabled() {
            // The front end may have taken the memory back: it must not stay mapped.
            self.view = None;
            return None;
        }
        if self.generation != state.generation {
            self.generation = state.generation;
            self.processor.reset();
        }
        let result = match state.invalid_size {
            Some(size) => Err(RingError::Size(u32::from(size)).into()),
            None => {
                let device = session.device().memory();
                let view = current_view(&mut self.view, session.memory(), device);
                let mut host = Host {
                    name: &self.name,
                    call: state.notifiers.call.as_ref(),
                    vring,
                    session,
                    busy_poll: &mut self.busy_poll,
                    alone: self.alone,
                };
                self.processor.pass(queue.get_queue_mut(), view, &mut host)
            }
        };
        if result.is_err() {
            vring.mark_broken();
        }
        Some(result)
    }

    /// Consumes the kick that ended a sleep of `time`.
    pub(super) fn kicked(&mut self, kick: &Arc<File>, time: Duration) {
        match event::consume(kick) {
            Ok(()) => {
                self.metrics.kicks.add(1);
                self.busy_poll.slept(time);
            }
            Err(e) => {
                log::warn!(
                    "{}: unusable kick descriptor: {e}; waiting for the front end to set another",
                    self.name
                );
                self.parts.vring.drop_kick(kick);
            }
        }
    }

    fn report(&self, error: PassError) {
        let Some(suppressed) = self.parts.session.device().log_limit().pass() else {
            return;
        };
        let suppressed = match suppressed {
            0 => String::new(),
            count => format!(" ({count} similar messages suppressed)"),
        };
        log::error!(
            "{}: queue stopped until the driver resets it: {error}{suppressed}",
            self.name
        );
    }
}

fn current_view<'v>(
    slot: &'v mut Option<CachedView>,
    memory: &Memory,
    device: &DeviceMemory,
) -> &'v GuestView {
    let table = memory.memory();
    let stale = slot
        .as_ref()
        .is_none_or(|cached| !std::ptr::eq(&*table, Arc::as_ptr(&cached.table)));
    if stale {
        *slot = None;
    }
    &slot
        .get_or_insert_with(|| CachedView {
            view: GuestView::new(&table, device),
            table: table.into_inner(),
        })
        .view
}
