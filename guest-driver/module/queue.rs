// SPDX-License-Identifier: GPL-2.0

//! A request queue: submission from any task, completion in interrupt context.

use crate::{
    request::Request,
    slab::SlabBox,
    spinlock::{new_irq_spinlock, IrqSaveBackend, IrqSpinLock},
    virtio::{QueueHandler, VirtQueue},
    wait::signal_pending,
    watchdog::Watchdog,
};
use kernel::{
    bindings,
    new_condvar,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        lock::Guard,
        Arc, CondVar,
    },
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

/// Periods of the watchdog that are told apart. A request that is still there when its period comes
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

struct Ring {
    queue: Option<VirtQueue<SlabBox<Request>>>,
    /// Requests in the ring.
    in_flight: usize,
    /// How many of them were submitted in each of the last periods.
    ages: [usize; EPOCHS],
    /// The current period.
    epoch: usize,
    gate: Gate,
    /// Tasks that wait for room.
    waiting: usize,
}

/// A request queue.
#[pin_data]
pub(crate) struct Queue {
    #[pin]
    ring: IrqSpinLock<Ring>,
    #[pin]
    room: CondVar,
    /// Kicks that are being sent: the virtqueue may not be deleted under them.
    kicks: Atomic<i32>,
    /// Told when the device has broken the rules of the ring.
    watchdog: Arc<Watchdog>,
}

impl Queue {
    /// A queue without a ring: [`Queue::open`] gives it one.
    pub(crate) fn new(watchdog: Arc<Watchdog>) -> impl PinInit<Self> {
        pin_init!(Self {
            ring <- new_irq_spinlock!(
                Ring {
                    queue: None,
                    in_flight: 0,
                    ages: [0; EPOCHS],
                    epoch: 0,
                    gate: Gate::Paused,
                    waiting: 0,
                },
                "vdma_ring"
            ),
            room <- new_condvar!("vdma_room"),
            kicks: Atomic::new(0),
            watchdog,
        })
    }

    /// Takes `queue` into use.
    pub(crate) fn open(&self, queue: VirtQueue<SlabBox<Request>>) {
        let mut ring = self.ring.lock();
        ring.queue = Some(queue);
        ring.gate = Gate::Open;
        drop(ring);
        self.room.notify_all();
    }

    /// Begins a new period, and says how the queue is.
    pub(crate) fn tick(&self) -> Health {
        let mut ring = self.ring.lock();
        ring.epoch = (ring.epoch + 1) % EPOCHS;
        if ring.queue.as_ref().is_some_and(|queue| queue.is_broken()) {
            Health::Broken
        } else if ring.ages[ring.epoch] > 0 {
            Health::Late
        } else {
            Health::Good
        }
    }

    /// Runs `f` on the virtqueue, while there is one.
    pub(crate) fn with_virtqueue<R>(
        &self,
        f: impl FnOnce(&mut VirtQueue<SlabBox<Request>>) -> R,
    ) -> Option<R> {
        self.ring.lock().queue.as_mut().map(f)
    }

    /// Hands a request to the device. Sleeps only with [`WhenFull::Wait`].
    ///
    /// On failure the request comes back: `EAGAIN` and `EINTR` as [`WhenFull`] says, `ENODEV` when
    /// the device is gone, `EIO` when it broke the rules of the ring, `ENOMEM`.
    pub(crate) fn submit(
        &self,
        mut request: SlabBox<Request>,
        when_full: WhenFull,
    ) -> Result<(), (Error, SlabBox<Request>)> {
        let (pages, segments) = request.extent();
        // Counted before the device sees the request, for it may come back at once.
        request.transfer().request_submitted(pages, segments);
        let mut full_before = false;
        let mut ring = self.ring.lock();
        let error = loop {
            let state = &mut *ring;
            let queue = match (state.gate, state.queue.as_mut()) {
                (Gate::Open, Some(queue)) => queue,
                (Gate::Closed, _) => break ENODEV,
                _ if when_full == WhenFull::Fail => break EAGAIN,
                _ => match self.wait(ring) {
                    Ok(locked) => {
                        ring = locked;
                        continue;
                    }
                    Err(error) => return Err((self.retract(&request, error), request)),
                },
            };
            request.set_epoch(state.epoch);
            match queue.add(request) {
                Ok(()) => {
                    state.in_flight += 1;
                    state.ages[state.epoch] += 1;
                    let kick = queue.prepare_kick();
                    if let Some(kick) = kick {
                        self.kicks.add(1, Relaxed);
                        drop(ring);
                        // SAFETY: The queue is deleted only when `kicks` is zero.
                        unsafe { kick.send() };
                        let _ = self.kicks.fetch_sub(1, Release);
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
                request.transfer().queue_was_full();
            }
            if state.in_flight == 0 {
                // Nothing will make room: there was no memory for the indirect descriptors, and the
                // ring alone is too small.
                break ENOMEM;
            }
            if when_full == WhenFull::Fail {
                break EAGAIN;
            }
            match self.wait(ring) {
                Ok(locked) => ring = locked,
                Err(error) => return Err((self.retract(&request, error), request)),
            }
        };
        drop(ring);
        Err((self.retract(&request, error), request))
    }

    /// Takes back what was counted for a request that did not go.
    fn retract(&self, request: &SlabBox<Request>, error: Error) -> Error {
        let (pages, segments) = request.extent();
        request.transfer().request_retracted(pages, segments);
        error
    }

    /// Waits until the ring may have room, with the lock let go meanwhile; `EINTR` on a signal.
    fn wait<'a>(
        &'a self,
        mut ring: Guard<'a, Ring, IrqSaveBackend>,
    ) -> Result<Guard<'a, Ring, IrqSaveBackend>> {
        ring.waiting += 1;
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
        // SAFETY: Nothing is locked, and who waits for room may sleep.
        unsafe { bindings::msleep(1) };
        Ok(self.ring.lock())
    }

    /// Takes up to [`BATCH`] used requests off the ring; returns whether there may be more.
    fn pop_batch(&self, batch: &mut [Option<(SlabBox<Request>, u32)>; BATCH]) -> bool {
        let mut ring = self.ring.lock();
        let state = &mut *ring;
        let Some(queue) = state.queue.as_mut() else {
            return false;
        };
        let mut count = 0;
        let more = loop {
            queue.disable_interrupt();
            while count < BATCH {
                let Some(used) = queue.pop() else { break };
                state.in_flight -= 1;
                state.ages[used.0.epoch()] -= 1;
                batch[count] = Some(used);
                count += 1;
            }
            if count == BATCH {
                break true;
            }
            if queue.is_broken() {
                self.watchdog.alarm();
                break false;
            }
            if queue.enable_interrupt() {
                break false;
            }
        };
        let wake = state.waiting > 0;
        drop(ring);
        if wake {
            self.room.notify_all();
        }
        more
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
        self.room.notify_all();
    }

    /// Completes every request, with its answer or with `error`, and gives up the virtqueue, which
    /// may be deleted afterwards. May sleep.
    ///
    /// To be called on a paused or closed queue of a device that has been reset.
    pub(crate) fn drain(&self, error: Error) {
        while self.kicks.load(Acquire) != 0 {
            // SAFETY: Removal runs in process context, where sleeping is allowed.
            unsafe { bindings::msleep(1) };
        }
        self.on_used();
        let queue = {
            let mut ring = self.ring.lock();
            ring.in_flight = 0;
            ring.ages = [0; EPOCHS];
            ring.queue.take()
        };
        if let Some(mut queue) = queue {
            while let Some(request) = queue.detach_unused() {
                request.abandon(error);
            }
        }
    }
}

impl QueueHandler for Queue {
    fn on_used(&self) {
        loop {
            let mut batch = [const { None }; BATCH];
            let more = self.pop_batch(&mut batch);
            for (request, written) in batch.into_iter().flatten() {
                request.complete(written);
            }
            if !more {
                break;
            }
        }
    }
}
