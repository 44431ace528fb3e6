// SPDX-License-Identifier: GPL-2.0

//! A request queue: submission from any task, completion in interrupt context.

use kernel::{
    new_poll_condvar,
    prelude::*,
    sync::{Arc, lock::Guard, poll::PollCondVar},
};

use crate::{
    io::request::Request,
    linux::{
        blk_plug::Unplug,
        cpu, delay,
        list::Stack,
        slab::SlabBox,
        spinlock::{IrqSaveBackend, IrqSpinLock, new_irq_spinlock},
        unload::ModuleUser,
        wait::signal_pending,
    },
    virtio::{QueueHandler, Stopped, VirtQueue},
    watchdog::Watchdog,
};

/// Completions that are taken off the ring before the lock is released.
const BATCH: usize = 16;

/// What a submission does when the ring is full.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Wait for free descriptors; a signal ends the wait with `EINTR`.
    Wait,
    /// Fail with `EAGAIN`; an operation of several requests is submitted as a whole or not at all.
    Fail,
    /// Fail with `EAGAIN`; an operation of several requests ends before the one that fails.
    Stop,
}

impl WhenFull {
    /// What the call of a (non-)blocking caller does.
    pub(crate) fn of_caller(non_blocking: bool) -> Self {
        if non_blocking { Self::Fail } else { Self::Wait }
    }

    /// What the call of a (non-)blocking caller does on a file that may be non-blocking itself.
    ///
    /// The latter comes first: poll(2) reports a file with one free descriptor as ready, and then a
    /// call must not fail because it needs more.
    #[inline]
    pub(crate) fn of_call(non_blocking_file: bool, non_blocking: bool) -> Self {
        if non_blocking_file {
            Self::Stop
        } else {
            Self::of_caller(non_blocking)
        }
    }

    fn may_wait(self) -> bool {
        self == Self::Wait
    }
}

/// Time-out epochs that are told apart. A request that is still in the ring when its epoch would
/// come round again is late.
const EPOCHS: usize = 4;

/// Epochs that pass, at least, before a request counts as late.
pub(crate) const EPOCHS_PER_TIMEOUT: u32 = EPOCHS as u32 - 1;

/// Whether the device serves a queue.
pub(crate) enum Health {
    /// Requests come back, or there are none.
    Good,
    /// A request has been with the device for [`EPOCHS_PER_TIMEOUT`] epochs.
    Late,
    /// The device has broken the rules of the ring, and virtio has stopped using it.
    Broken,
}

/// Whether requests may be submitted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// They may.
    Open,
    /// Not for now: the device is being restarted.
    Paused,
    /// Never again.
    Closed,
}

/// Why a request was not put into the ring.
enum Refusal {
    /// No descriptors are free.
    Full,
    /// The device is being restarted.
    Paused,
    /// It would be refused again.
    Failed(Error),
}

/// What the attempts to submit one request have led to so far.
#[derive(Default)]
struct Attempts {
    /// The ring was full.
    found_full: bool,
    /// The device was kicked, so that it works on what fills the ring.
    kicked: bool,
    /// The task has slept, so that its block plug has ended.
    slept: bool,
}

/// What the lock of a queue protects.
struct Ring {
    queue: Option<VirtQueue<Request>>,
    /// Requests in the ring.
    in_flight: usize,
    /// Requests that have come back.
    returned: usize,
    /// How many requests in the ring were submitted in each of the last time-out epochs.
    submitted_in: [usize; EPOCHS],
    /// The current time-out epoch.
    epoch: usize,
    gate: Gate,
    /// Submitters that sleep until descriptors free up.
    sleeping_submitters: usize,
    /// A poll(2) waiter needs a wake-up when descriptors free up.
    wake_poll_waiters: bool,
    /// Requests in the ring whose submitters reap them with `iopoll`.
    polled: usize,
    /// Tasks that busy-poll this queue.
    busy_pollers: usize,
}

impl Ring {
    fn health(&self) -> Health {
        if self.queue.as_ref().is_some_and(|queue| queue.is_broken()) {
            Health::Broken
        } else if self.submitted_in[(self.epoch + 1) % EPOCHS] > 0 {
            Health::Late
        } else {
            Health::Good
        }
    }

    /// Enables interrupts if a task depends on them. Returns whether used requests are waiting for
    /// which no interrupt may come, so that the caller has to reap them.
    ///
    /// | submitter sleeps, or poll(2) waiter | tasks busy-poll | every request is `polled` | interrupts |
    /// |---|---|---|---|
    /// | yes | any | any | on |
    /// | no | yes | any | off |
    /// | no | no | yes | off |
    /// | no | no | no, or the ring is empty | on |
    ///
    /// This function only turns them on. They are turned off where a row with "off" begins: when a
    /// task starts to busy-poll, when a polled request enters an empty ring, and while used
    /// requests are taken off the ring, after which this function decides again.
    fn update_interrupts(&mut self) -> bool {
        let only_polled = self.in_flight > 0 && self.in_flight == self.polled;
        // A submitter that sleeps needs the interrupt even if it busy-polls afterwards.
        let has_sleepers = self.sleeping_submitters > 0 || self.wake_poll_waiters;
        let needed = has_sleepers || self.busy_pollers == 0 && !only_polled;
        match self.queue.as_mut() {
            Some(queue) if needed => !queue.enable_interrupt(),
            _ => false,
        }
    }

    /// Puts a request into the ring. Never waits.
    ///
    /// Returns what [`Ring::update_interrupts`] does.
    #[inline(always)]
    fn try_submit(
        &mut self,
        mut request: SlabBox<Request>,
    ) -> Result<bool, (Refusal, SlabBox<Request>)> {
        let queue = match (self.gate, self.queue.as_mut()) {
            (Gate::Open, Some(queue)) => queue,
            (Gate::Closed, _) => return Err((Refusal::Failed(ENODEV), request)),
            _ => return Err((Refusal::Paused, request)),
        };
        request.set_epoch(self.epoch);
        let polled = request.is_polled();
        queue.add(request).map_err(|(error, request)| {
            let refusal = if error == ENOSPC {
                Refusal::Full
            } else {
                Refusal::Failed(error)
            };
            (refusal, request)
        })?;
        // The first request that needs an interrupt among polled ones.
        let interrupts_needed = !polled && self.polled > 0 && self.in_flight == self.polled;
        if polled && self.in_flight == 0 {
            queue.disable_interrupt();
        }
        self.in_flight += 1;
        self.polled += usize::from(polled);
        self.submitted_in[self.epoch] += 1;
        Ok(interrupts_needed && self.update_interrupts())
    }
}

/// The queues of a device. They outlive the virtqueues in them.
pub(crate) type Queues = KVec<Arc<Queue>>;

/// The queue of this CPU, so that CPUs share as few as they can. The interrupts of a queue go to
/// the CPUs that it belongs to.
pub(crate) fn of_current_cpu(queues: &Queues) -> Result<&Arc<Queue>> {
    // The task may move to another CPU at once, which costs locality and nothing else.
    queues
        .get(cpu::current_number() % queues.len().max(1))
        .ok_or(ENODEV)
}

/// Where poll(2) waiters of a device wait for free descriptors in any of its queues.
pub(crate) fn poll_waiters() -> impl PinInit<PollCondVar> {
    new_poll_condvar!("vdma_poll_waiters")
}

/// A request queue.
#[pin_data]
pub(crate) struct Queue {
    #[pin]
    ring: IrqSpinLock<Ring>,
    /// Where submitters wait for free descriptors.
    #[pin]
    submitters: PollCondVar,
    /// Shared by the queues of the device: see [`poll_waiters`].
    poll_waiters: Arc<PollCondVar>,
    number: u32,
    /// Alarmed when the device has broken the rules of the ring.
    watchdog: Arc<Watchdog>,
    /// Last, for it is dropped last.
    user: ModuleUser,
}

impl Queue {
    /// A queue without a ring: [`Queue::open`] gives it one.
    pub(crate) fn new(
        number: u32,
        poll_waiters: Arc<PollCondVar>,
        watchdog: Arc<Watchdog>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            ring <- new_irq_spinlock!(
                Ring {
                    queue: None,
                    in_flight: 0,
                    returned: 0,
                    submitted_in: [0; EPOCHS],
                    epoch: 0,
                    gate: Gate::Paused,
                    sleeping_submitters: 0,
                    wake_poll_waiters: false,
                    polled: 0,
                    busy_pollers: 0,
                },
                "vdma_ring"
            ),
            submitters <- new_poll_condvar!("vdma_submitters"),
            poll_waiters,
            number,
            watchdog,
            user: ModuleUser::new(),
        })
    }

    /// Takes `queue` into use. May sleep.
    pub(crate) fn open(&self, queue: VirtQueue<Request>) {
        let mut ring = self.ring.lock();
        let old = ring.queue.replace(queue);
        if ring.gate == Gate::Paused {
            ring.gate = Gate::Open;
        }
        drop(ring);
        // Sleeps.
        drop(old);
        self.wake_waiters();
    }

    /// Begins a new time-out epoch. Returns the health before.
    pub(crate) fn advance_epoch(&self) -> Health {
        let mut ring = self.ring.lock();
        let health = ring.health();
        // A late request keeps its epoch to itself: newer ones must not count as late with it.
        if !matches!(health, Health::Late) {
            ring.epoch = (ring.epoch + 1) % EPOCHS;
        }
        health
    }

    pub(crate) fn health(&self) -> Health {
        self.ring.lock().health()
    }

    /// Runs `f` on the virtqueue, while there is one.
    pub(crate) fn with_virtqueue<R>(
        &self,
        f: impl FnOnce(&mut VirtQueue<Request>) -> R,
    ) -> Option<R> {
        self.ring.lock().queue.as_mut().map(f)
    }

    /// Submits a request, and with `kick` notifies the device of it; otherwise the next kick does.
    /// Sleeps only with [`WhenFull::Wait`].
    ///
    /// Fails with `EAGAIN` and `EINTR` as [`WhenFull`] says, `ENODEV` when the device is gone,
    /// `EIO` when it broke the rules of the ring, `ENOMEM`. The request comes back then.
    pub(crate) fn submit(
        &self,
        mut request: SlabBox<Request>,
        when_full: WhenFull,
        kick: bool,
    ) -> Result<(), (Error, SlabBox<Request>)> {
        // Counted before the device sees the request, for it may come back at once.
        request.account_submit(self.number);
        let mut attempts = Attempts::default();
        let mut ring = self.ring.lock();
        loop {
            let (refusal, back) = match ring.try_submit(request) {
                Ok(missed) => {
                    // A kick that the plug was to send was sent when the task slept.
                    if kick || attempts.slept {
                        self.send_kick(ring);
                    } else {
                        drop(ring);
                    }
                    if missed {
                        self.reap();
                    }
                    return Ok(());
                }
                Err(refused) => refused,
            };
            request = back;
            if matches!(refusal, Refusal::Full) && !attempts.found_full {
                attempts.found_full = true;
                request.count(|counters| counters.queue_full.add(1));
            }
            match self.wait_after(refusal, ring, when_full, &mut attempts) {
                Ok(locked) => ring = locked,
                Err(error) => {
                    request.unaccount();
                    return Err((error, request));
                }
            }
        }
    }

    /// Waits until another attempt may succeed, as far as `when_full` allows it. The lock is
    /// released meanwhile.
    #[cold]
    fn wait_after<'a>(
        &'a self,
        refusal: Refusal,
        mut ring: Guard<'a, Ring, IrqSaveBackend>,
        when_full: WhenFull,
        attempts: &mut Attempts,
    ) -> Result<Guard<'a, Ring, IrqSaveBackend>> {
        match refusal {
            Refusal::Failed(error) => return Err(error),
            Refusal::Paused if !when_full.may_wait() => return Err(EAGAIN),
            Refusal::Paused => {}
            Refusal::Full => {
                ring.wake_poll_waiters = true;
                if ring.in_flight == 0 {
                    // Nothing will free descriptors: there was no memory for indirect ones, and the
                    // ring alone is too small.
                    return Err(ENOMEM);
                }
                if !when_full.may_wait() {
                    let missed = ring.update_interrupts();
                    drop(ring);
                    if missed {
                        self.reap();
                    }
                    return Err(EAGAIN);
                }
                // What fills the ring may have been submitted without a kick.
                if !attempts.kicked {
                    attempts.kicked = true;
                    self.send_kick(ring);
                    return Ok(self.ring.lock());
                }
            }
        }
        attempts.slept = true;
        self.wait(ring)
    }

    /// Notifies the device of what was submitted, unless it has suppressed notifications. Any
    /// context; costs an exit from the guest.
    pub(crate) fn kick(&self) {
        self.send_kick(self.ring.lock());
    }

    /// [`Queue::kick`], which releases the lock.
    fn send_kick(&self, mut ring: Guard<'_, Ring, IrqSaveBackend>) {
        let kick = ring.queue.as_mut().and_then(VirtQueue::prepare_kick);
        if let Some(kick) = kick {
            drop(ring);
            kick.send();
        }
    }

    /// Waits until descriptors may be free, with the lock released meanwhile and interrupts
    /// enabled; `EINTR` on a signal.
    fn wait<'a>(
        &'a self,
        mut ring: Guard<'a, Ring, IrqSaveBackend>,
    ) -> Result<Guard<'a, Ring, IrqSaveBackend>> {
        ring.sleeping_submitters += 1;
        if ring.update_interrupts() {
            ring.sleeping_submitters -= 1;
            drop(ring);
            self.reap();
            return Ok(self.ring.lock());
        }
        let interrupted = self.submitters.wait_interruptible(&mut ring);
        ring.sleeping_submitters -= 1;
        if !interrupted {
            return Ok(ring);
        }
        drop(ring);
        if signal_pending() {
            return Err(EINTR);
        }
        // Task work interrupted the wait, and goes on doing so until the task is back in user
        // space.
        delay::sleep_ms(1);
        Ok(self.ring.lock())
    }

    /// Takes up to [`BATCH`] used requests off the ring, and whether there may be more.
    fn pop_batch(&self) -> (Stack<SlabBox<Request>>, bool) {
        let mut batch = Stack::new();
        let mut wake = false;
        let mut ring = self.ring.lock();
        let state = &mut *ring;
        let more = loop {
            let Some(queue) = state.queue.as_mut() else {
                return (batch, false);
            };
            queue.disable_interrupt();
            while batch.len() < BATCH {
                let Some((mut request, written)) = queue.pop() else {
                    break;
                };
                request.set_written(written);
                state.in_flight -= 1;
                state.returned = state.returned.wrapping_add(1);
                state.polled -= usize::from(request.is_polled());
                state.submitted_in[request.epoch()] -= 1;
                batch.push(request);
            }
            if batch.len() > 0 {
                wake |= state.sleeping_submitters > 0 || state.wake_poll_waiters;
                state.wake_poll_waiters = false;
            }
            if batch.len() == BATCH {
                break true;
            }
            if queue.is_broken() {
                self.watchdog.alarm();
                break false;
            }
            if !state.update_interrupts() {
                break false;
            }
        };
        drop(ring);
        if wake {
            self.wake_waiters();
        }
        (batch, more)
    }

    /// Completes what the device has used, and returns how many that were. Any context.
    pub(crate) fn reap(&self) -> usize {
        let mut count = 0;
        loop {
            let (batch, more) = self.pop_batch();
            count += batch.len();
            // In the order in which they came back.
            let mut batch = batch.reversed();
            while let Some(request) = batch.pop() {
                request.complete();
            }
            if !more {
                return count;
            }
        }
    }

    /// [`Queue::reap`] by a task that polls, without an interrupt.
    pub(crate) fn poll_completions(&self) -> usize {
        if self.ring.lock().in_flight == 0 {
            0
        } else {
            self.reap()
        }
    }

    /// Disables interrupts until the result is dropped: the task busy-polls meanwhile.
    pub(crate) fn start_busy_poll(&self) -> BusyPollGuard<'_> {
        let mut ring = self.ring.lock();
        ring.busy_pollers += 1;
        if let Some(queue) = ring.queue.as_mut() {
            queue.disable_interrupt();
        }
        BusyPollGuard(self)
    }

    /// Whether a request could be submitted now. If not, [`Queue::poll_waiters`] are woken when
    /// descriptors free up.
    pub(crate) fn poll_free_descriptors(&self) -> bool {
        if self.has_free_descriptors(1) {
            return true;
        }
        let missed = {
            let mut ring = self.ring.lock();
            ring.wake_poll_waiters = true;
            ring.update_interrupts()
        };
        if missed {
            self.reap();
        }
        // Descriptors that were freed before `wake_poll_waiters` was set have woken no waiter.
        self.has_free_descriptors(1)
    }

    /// Whether this number of requests could be submitted now.
    pub(crate) fn has_free_descriptors(&self, requests: usize) -> bool {
        let ring = self.ring.lock();
        // One descriptor each: the others are in an indirect table.
        ring.queue
            .as_ref()
            .is_some_and(|queue| queue.free() as usize >= requests)
    }

    /// Whether no request can be submitted ever again.
    pub(crate) fn is_closed(&self) -> bool {
        self.ring.lock().gate == Gate::Closed
    }

    /// Where poll(2) waiters wait for free descriptors in any queue of the device.
    pub(crate) fn poll_waiters(&self) -> &PollCondVar {
        &self.poll_waiters
    }

    /// Wakes all tasks that wait for free descriptors.
    fn wake_waiters(&self) {
        self.submitters.notify_all();
        self.poll_waiters.notify_all();
    }

    /// Requests that have come back, ever.
    pub(crate) fn returned(&self) -> usize {
        self.ring.lock().returned
    }

    /// Requests in the ring.
    pub(crate) fn in_flight(&self) -> usize {
        self.ring.lock().in_flight
    }

    /// Refuses requests until [`Queue::open`]; submitters that may wait do.
    pub(crate) fn pause(&self) {
        let mut ring = self.ring.lock();
        if ring.gate == Gate::Open {
            ring.gate = Gate::Paused;
        }
    }

    /// Refuses requests for good; submitters that wait fail with `ENODEV`.
    pub(crate) fn close(&self) {
        self.ring.lock().gate = Gate::Closed;
        self.wake_waiters();
    }

    /// Completes every request, with the device's response or with `error`, and drops the
    /// virtqueue, once its kicks have been sent. May sleep.
    ///
    /// To be called on a paused or closed queue, of the device that was stopped.
    pub(crate) fn drain(&self, stopped: &Stopped<'_, '_>, error: Error) {
        self.reap();
        let queue = {
            let mut ring = self.ring.lock();
            ring.in_flight = 0;
            ring.polled = 0;
            ring.submitted_in = [0; EPOCHS];
            ring.queue.take()
        };
        if let Some(mut queue) = queue {
            while let Some(request) = queue.detach_unused(stopped) {
                request.abandon(error);
            }
        }
    }
}

impl Unplug for Queue {
    fn unplug(&self) {
        self.kick();
    }

    fn module_user(&self) -> &ModuleUser {
        &self.user
    }
}

impl QueueHandler for Queue {
    fn on_used(&self) {
        self.reap();
    }
}

/// A task that busy-polls a queue, which needs no interrupts for it meanwhile.
pub(crate) struct BusyPollGuard<'a>(&'a Queue);

impl Drop for BusyPollGuard<'_> {
    fn drop(&mut self) {
        let missed = {
            let mut ring = self.0.ring.lock();
            ring.busy_pollers -= 1;
            ring.update_interrupts()
        };
        if missed {
            self.0.reap();
        }
    }
}
