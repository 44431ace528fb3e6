// SPDX-License-Identifier: GPL-2.0

//! A request queue: submission from any task, completion in interrupt context.

use crate::{
    request::Request,
    slab::SlabBox,
    spinlock::{new_irq_spinlock, IrqSpinLock},
    virtio::{QueueHandler, VirtQueue},
};
use kernel::{
    bindings,
    new_condvar,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        CondVar,
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

struct Ring {
    queue: Option<VirtQueue<SlabBox<Request>>>,
    /// Requests in the ring.
    in_flight: usize,
    /// Set when nothing may be submitted any more.
    closed: bool,
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
}

impl Queue {
    pub(crate) fn new(queue: VirtQueue<SlabBox<Request>>) -> impl PinInit<Self> {
        pin_init!(Self {
            ring <- new_irq_spinlock!(
                Ring { queue: Some(queue), in_flight: 0, closed: false, waiting: 0 },
                "vdma_ring"
            ),
            room <- new_condvar!("vdma_room"),
            kicks: Atomic::new(0),
        })
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
            let Some(queue) = state.queue.as_mut().filter(|_| !state.closed) else {
                break ENODEV;
            };
            match queue.add(request) {
                Ok(()) => {
                    state.in_flight += 1;
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
            state.waiting += 1;
            let signalled = self.room.wait_interruptible(&mut ring);
            ring.waiting -= 1;
            if signalled {
                break EINTR;
            }
        };
        drop(ring);
        request.transfer().request_retracted(pages, segments);
        Err((error, request))
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
                batch[count] = Some(used);
                count += 1;
            }
            if count == BATCH {
                break true;
            }
            if queue.is_broken() || queue.enable_interrupt() {
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

    /// Lets nothing more in, and sends away who waits for room.
    pub(crate) fn close(&self) {
        self.ring.lock().closed = true;
        self.room.notify_all();
    }

    /// Completes every request, with its answer or with `ENODEV`, and gives up the virtqueue, which
    /// may be deleted afterwards. May sleep.
    ///
    /// To be called on a closed queue of a device that has been reset.
    pub(crate) fn drain(&self) {
        while self.kicks.load(Acquire) != 0 {
            // SAFETY: Removal runs in process context, where sleeping is allowed.
            unsafe { bindings::msleep(1) };
        }
        self.on_used();
        let queue = self.ring.lock().queue.take();
        if let Some(mut queue) = queue {
            while let Some(request) = queue.detach_unused() {
                request.abandon();
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
