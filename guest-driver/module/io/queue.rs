// SPDX-License-Identifier: GPL-2.0

//! A request queue: submission from any task, completion in interrupt context.

use kernel::{
    new_poll_condvar,
    prelude::*,
    sync::{
        Arc,
        atomic::{Acquire, Atomic, Relaxed, Release},
        lock::Guard,
        poll::PollCondVar,
    },
};

use crate::{
    io::request::Request,
    linux::{
        delay,
        slab::SlabBox,
        spinlock::{IrqSaveBackend, IrqSpinLock, new_irq_spinlock},
        wait::signal_pending,
    },
    virtio::{QueueHandler, VirtQueue},
    watchdog::Watchdog,
};

/// Completions that are taken off the ring before the lock is let go.
const BATCH: usize = 16;

/// What to do when the ring has no room.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Wait for room; a signal ends the wait with `EINTR`.
    Wait,
    /// Fail with `EAGAIN`.
    Fail,
}

/// Periods of the watchdog that are told apart. A request that is still there when its period would come
/// round again is late.
const EPOCHS: usize = 4;

/// Periods that pass, at the least, before a request counts as late.
pub(crate) const PERIODS_PER_TIMEOUT: u32 = EPOCHS as u32 - 1;

/// How a queue is.
pub(crate) enum Health {
    /// Requests come back, or there are none.
    Good,
    /// A request has been with the device for [`PERIODS_PER_TIMEOUT`] periods.
    Late,
    /// The device has broken the rules of the ring, and virtio has stopped using it.
    Broken,
}

/// Who may submit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gate {
    /// Everybody.
    Open,
    /// Nobody for now: the device is being restarted.
    Paused,
    /// Nobody any more.
    Closed,
}

/// Requests that have come back, in a list that needs no memory of its own.
struct Batch {
    last: Option<SlabBox<Request>>,
    count: usize,
}

impl Batch {
    fn new() -> Self {
        Self {
            last: None,
            count: 0,
        }
    }

    fn push(&mut self, mut request: SlabBox<Request>) {
        request.enlist(self.last.take());
        self.last = Some(request);
        self.count += 1;
    }

    /// Completes them, in the order in which they came back.
    fn complete(mut self) {
        let mut first = None;
        while let Some(mut request) = self.last {
            self.last = request.delist();
            request.enlist(first.take());
            first = Some(request);
        }
        while let Some(mut request) = first {
            first = request.delist();
            request.complete();
        }
    }
}

struct Ring {
    queue: Option<VirtQueue<SlabBox<Request>>>,
    /// Requests in the ring.
    in_flight: usize,
    /// Requests that have come back.
    returned: usize,
    /// How many of them were submitted in each of the last periods.
    ages: [usize; EPOCHS],
    /// The current period.
    epoch: usize,
    gate: Gate,
    /// Tasks that wait for room.
    waiting: usize,
    /// Somebody who looked found no room, and wants to hear of some.
    starved: bool,
    /// Requests in the ring whose submitters look for the completion.
    polled: usize,
    /// Tasks that look for completions all the time.
    lookers: usize,
}

impl Ring {
    fn health(&self) -> Health {
        if self.queue.as_ref().is_some_and(|queue| queue.is_broken()) {
            Health::Broken
        } else if self.ages[(self.epoch + 1) % EPOCHS] > 0 {
            Health::Late
        } else {
            Health::Good
        }
    }

    /// Asks for interrupts if anybody depends on them; returns whether used requests are waiting
    /// that may get none.
    fn settle(&mut self) -> bool {
        let only_polled = self.in_flight > 0 && self.in_flight == self.polled;
        // A task that waits for room sleeps, even if it is one that looks afterwards.
        let sleeps = self.waiting > 0 || self.starved;
        let needed = sleeps || self.lookers == 0 && !only_polled;
        match self.queue.as_mut() {
            Some(queue) if needed => !queue.enable_interrupt(),
            _ => false,
        }
    }
}

/// The tasks that poll a device.
#[pin_data]
pub(crate) struct Pollers {
    #[pin]
    room: PollCondVar,
}

impl Pollers {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self { room <- new_poll_condvar!("vdma_pollers") })
    }
}

/// A request queue.
#[pin_data]
pub(crate) struct Queue {
    #[pin]
    ring: IrqSpinLock<Ring>,
    #[pin]
    room: PollCondVar,
    /// Where those wait that want room in any queue of the device.
    pollers: Arc<Pollers>,
    number: u32,
    /// Kicks that are being sent: the virtqueue may not be deleted under them.
    kicks: Atomic<i32>,
    /// Told when the device has broken the rules of the ring.
    watchdog: Arc<Watchdog>,
}

impl Queue {
    /// A queue without a ring: [`Queue::open`] gives it one.
    pub(crate) fn new(
        number: u32,
        pollers: Arc<Pollers>,
        watchdog: Arc<Watchdog>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            ring <- new_irq_spinlock!(
                Ring {
                    queue: None,
                    in_flight: 0,
                    returned: 0,
                    ages: [0; EPOCHS],
                    epoch: 0,
                    gate: Gate::Paused,
                    waiting: 0,
                    starved: false,
                    polled: 0,
                    lookers: 0,
                },
                "vdma_ring"
            ),
            room <- new_poll_condvar!("vdma_room"),
            pollers,
            number,
            kicks: Atomic::new(0),
            watchdog,
        })
    }

    /// Takes `queue` into use.
    pub(crate) fn open(&self, queue: VirtQueue<SlabBox<Request>>) {
        let mut ring = self.ring.lock();
        ring.queue = Some(queue);
        if ring.gate == Gate::Paused {
            ring.gate = Gate::Open;
        }
        drop(ring);
        self.notify();
    }

    /// Begins a new period, and says how the queue is.
    pub(crate) fn tick(&self) -> Health {
        let mut ring = self.ring.lock();
        let health = ring.health();
        // What is late keeps its period: requests that come meanwhile are not taken for it.
        if !matches!(health, Health::Late) {
            ring.epoch = (ring.epoch + 1) % EPOCHS;
        }
        health
    }

    /// How the queue is.
    pub(crate) fn health(&self) -> Health {
        self.ring.lock().health()
    }

    /// Runs `f` on the virtqueue, while there is one.
    pub(crate) fn with_virtqueue<R>(
        &self,
        f: impl FnOnce(&mut VirtQueue<SlabBox<Request>>) -> R,
    ) -> Option<R> {
        self.ring.lock().queue.as_mut().map(f)
    }

    /// Hands a request to the device, and with `kick` tells it so; otherwise it hears of it with the next
    /// kick. Sleeps only with [`WhenFull::Wait`].
    ///
    /// On failure the request comes back: `EAGAIN` and `EINTR` as [`WhenFull`] says, `ENODEV` when
    /// the device is gone, `EIO` when it broke the rules of the ring, `ENOMEM`.
    pub(crate) fn submit(
        &self,
        mut request: SlabBox<Request>,
        when_full: WhenFull,
        mut kick: bool,
    ) -> Result<(), (Error, SlabBox<Request>)> {
        // Counted before the device sees the request, for it may come back at once.
        request.announce(self.number);
        let mut full_before = false;
        let mut kicked = false;
        let mut missed = false;
        let mut ring = self.ring.lock();
        let error = loop {
            let state = &mut *ring;
            let queue = match (state.gate, state.queue.as_mut()) {
                (Gate::Open, Some(queue)) => queue,
                (Gate::Closed, _) => break ENODEV,
                _ if when_full == WhenFull::Fail => break EAGAIN,
                _ => match self.wait(ring) {
                    Ok(locked) => {
                        // A kick that was put off has been sent when the task went to sleep.
                        kick = true;
                        ring = locked;
                        continue;
                    }
                    Err(error) => {
                        request.retract();
                        return Err((error, request));
                    }
                },
            };
            request.set_epoch(state.epoch);
            let polled = request.is_polled();
            match queue.add(request) {
                Ok(()) => {
                    // The first request that needs an interrupt among some that do not asks for it.
                    let first = !polled && state.polled > 0 && state.in_flight == state.polled;
                    if polled && state.in_flight == 0 {
                        queue.disable_interrupt();
                    }
                    state.in_flight += 1;
                    state.polled += usize::from(polled);
                    state.ages[state.epoch] += 1;
                    let missed = first && state.settle();
                    if kick {
                        self.send_kick(ring);
                    } else {
                        drop(ring);
                    }
                    if missed {
                        self.reap();
                    }
                    return Ok(());
                }
                Err((error, back)) => {
                    request = back;
                    if error != ENOSPC {
                        break error;
                    }
                }
            }
            if !full_before {
                full_before = true;
                request.count(|counters| counters.queue_full.add(1));
            }
            state.starved = true;
            if state.in_flight == 0 {
                // Nothing will make room: there was no memory for the indirect descriptors, and the
                // ring alone is too small.
                break ENOMEM;
            }
            if when_full == WhenFull::Fail {
                missed = state.settle();
                break EAGAIN;
            }
            // Nobody else may be about to kick what makes room when it is done.
            if !kicked {
                kicked = true;
                self.send_kick(ring);
                ring = self.ring.lock();
                continue;
            }
            match self.wait(ring) {
                Ok(locked) => {
                    kick = true;
                    ring = locked;
                }
                Err(error) => {
                    request.retract();
                    return Err((error, request));
                }
            }
        };
        drop(ring);
        if missed {
            self.reap();
        }
        request.retract();
        Err((error, request))
    }

    /// Tells the device of what was submitted, if it wants to be told. Any context; costs an exit from
    /// the guest.
    pub(crate) fn kick(&self) {
        self.send_kick(self.ring.lock());
    }

    /// [`Queue::kick`], which lets the lock go.
    fn send_kick(&self, mut ring: Guard<'_, Ring, IrqSaveBackend>) {
        let kick = ring.queue.as_mut().and_then(VirtQueue::prepare_kick);
        if let Some(kick) = kick {
            self.kicks.add(1, Relaxed);
            drop(ring);
            // SAFETY: The queue is deleted only when `kicks` is zero.
            unsafe { kick.send() };
            let _ = self.kicks.fetch_sub(1, Release);
        }
    }

    /// Waits until the ring may have room, with the lock let go meanwhile and interrupts asked for;
    /// `EINTR` on a signal.
    fn wait<'a>(
        &'a self,
        mut ring: Guard<'a, Ring, IrqSaveBackend>,
    ) -> Result<Guard<'a, Ring, IrqSaveBackend>> {
        ring.waiting += 1;
        if ring.settle() {
            ring.waiting -= 1;
            drop(ring);
            self.reap();
            return Ok(self.ring.lock());
        }
        let interrupted = self.room.wait_interruptible(&mut ring);
        ring.waiting -= 1;
        if !interrupted {
            return Ok(ring);
        }
        drop(ring);
        if signal_pending() {
            return Err(EINTR);
        }
        // Work for the task interrupted, and will until the task is back in user space.
        delay::sleep_ms(1);
        Ok(self.ring.lock())
    }

    /// Takes up to [`BATCH`] used requests off the ring, and whether there may be more.
    fn pop_batch(&self) -> (Batch, bool) {
        let mut batch = Batch::new();
        let mut wake = false;
        let mut ring = self.ring.lock();
        let state = &mut *ring;
        let more = loop {
            let Some(queue) = state.queue.as_mut() else {
                return (batch, false);
            };
            queue.disable_interrupt();
            while batch.count < BATCH {
                let Some((mut request, written)) = queue.pop() else {
                    break;
                };
                request.set_written(written);
                state.in_flight -= 1;
                state.returned = state.returned.wrapping_add(1);
                state.polled -= usize::from(request.is_polled());
                state.ages[request.epoch()] -= 1;
                batch.push(request);
            }
            if batch.count > 0 {
                wake |= state.waiting > 0 || state.starved;
                state.starved = false;
            }
            if batch.count == BATCH {
                break true;
            }
            if queue.is_broken() {
                self.watchdog.alarm();
                break false;
            }
            if !state.settle() {
                break false;
            }
        };
        drop(ring);
        if wake {
            self.notify();
        }
        (batch, more)
    }

    /// Completes what the device has used, and returns how many that were. Any context.
    pub(crate) fn reap(&self) -> usize {
        let mut count = 0;
        loop {
            let (batch, more) = self.pop_batch();
            count += batch.count;
            batch.complete();
            if !more {
                return count;
            }
        }
    }

    /// [`Queue::reap`] by a task that looks, without an interrupt.
    pub(crate) fn look(&self) -> usize {
        if self.ring.lock().in_flight == 0 {
            0
        } else {
            self.reap()
        }
    }

    /// Interrupts are not needed until the result is dropped: the task looks all the time.
    pub(crate) fn begin_looking(&self) -> Looking<'_> {
        let mut ring = self.ring.lock();
        ring.lookers += 1;
        if let Some(queue) = ring.queue.as_mut() {
            queue.disable_interrupt();
        }
        Looking(self)
    }

    /// Whether a request would find room now. If not, [`Queue::room`] hears of some.
    pub(crate) fn has_room(&self) -> bool {
        if self.has_room_for(1) {
            return true;
        }
        let missed = {
            let mut ring = self.ring.lock();
            ring.starved = true;
            ring.settle()
        };
        if missed {
            self.reap();
        }
        // Room that came before `starved` was set has woken nobody.
        self.has_room_for(1)
    }

    /// Whether so many requests would find room now.
    pub(crate) fn has_room_for(&self, requests: usize) -> bool {
        let ring = self.ring.lock();
        // One descriptor each: the others are in an indirect table.
        ring.queue
            .as_ref()
            .is_some_and(|queue| queue.free() as usize >= requests)
    }

    /// Whether nothing will ever go through any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.ring.lock().gate == Gate::Closed
    }

    /// Where those wait that want room in any queue of the device.
    pub(crate) fn pollers(&self) -> &PollCondVar {
        &self.pollers.room
    }

    /// Wakes all who wait for room.
    fn notify(&self) {
        self.room.notify_all();
        self.pollers.room.notify_all();
    }

    /// Requests that have come back, ever.
    pub(crate) fn returned(&self) -> usize {
        self.ring.lock().returned
    }

    /// Requests in the ring.
    pub(crate) fn in_flight(&self) -> usize {
        self.ring.lock().in_flight
    }

    /// Lets nothing more in for now; who may wait does.
    pub(crate) fn pause(&self) {
        let mut ring = self.ring.lock();
        if ring.gate == Gate::Open {
            ring.gate = Gate::Paused;
        }
    }

    /// Lets nothing more in ever, and sends away who waits.
    pub(crate) fn close(&self) {
        self.ring.lock().gate = Gate::Closed;
        self.notify();
    }

    /// Completes every request, with its answer or with `error`, and gives up the virtqueue, which
    /// may be deleted afterwards. May sleep.
    ///
    /// To be called on a paused or closed queue of a device that has been reset.
    pub(crate) fn drain(&self, error: Error) {
        self.reap();
        let queue = {
            let mut ring = self.ring.lock();
            ring.in_flight = 0;
            ring.polled = 0;
            ring.ages = [0; EPOCHS];
            ring.queue.take()
        };
        // No kick begins any more: those that have are counted under the lock.
        while self.kicks.load(Acquire) != 0 {
            delay::sleep_ms(1);
        }
        if let Some(mut queue) = queue {
            while let Some(request) = queue.detach_unused() {
                request.abandon(error);
            }
        }
    }
}

impl QueueHandler for Queue {
    fn on_used(&self) {
        self.reap();
    }
}

/// A task that looks for completions all the time.
pub(crate) struct Looking<'a>(&'a Queue);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        let missed = {
            let mut ring = self.0.ring.lock();
            ring.lookers -= 1;
            ring.settle()
        };
        if missed {
            self.0.reap();
        }
    }
}
