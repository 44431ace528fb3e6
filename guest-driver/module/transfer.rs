// SPDX-License-Identifier: GPL-2.0

//! One call of read or write (or an internal operation), made of one or more requests.
//!
//! A transfer longer than a request is split; its requests complete in any order. When the last of
//! them is back, and the caller has submitted all, the transfer completes once: into the caller's
//! `kiocb`, or to the task that waits for it.

use crate::{
    chardev::AsyncIocb,
    counters::Counters,
    request::Completed,
    slab::{self, Cache, Cached},
    spinlock::{new_irq_spinlock, IrqSpinLock},
    wait::Completion,
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        aref::{ARef, AlwaysRefCounted},
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
};

struct Outcome {
    /// Bytes that were submitted.
    length: usize,
    /// First byte that was not moved, and why.
    failed: Option<(usize, Error)>,
    /// The value of the response, for operations of one request.
    value: u64,
    /// Who is told, if it is not a waiting task.
    iocb: Option<AsyncIocb>,
}

impl Outcome {
    /// The bytes up to the first failure, or the failure when there are none.
    fn result(&self) -> Result<usize> {
        match self.failed {
            None => Ok(self.length),
            Some((0, error)) => Err(error),
            Some((moved, _)) => Ok(moved),
        }
    }
}

/// A transfer. Reference-counted, in a slab cache.
#[pin_data]
pub(crate) struct Transfer {
    references: Atomic<i32>,
    /// Requests that are not back, and one for the submitter until it has submitted all.
    outstanding: Atomic<i32>,
    file: Option<Arc<Counters>>,
    device: Arc<Counters>,
    #[pin]
    outcome: IrqSpinLock<Outcome>,
    #[pin]
    done: Completion,
}

// SAFETY: Everything inside may be used from any CPU.
unsafe impl Send for Transfer {}
// SAFETY: Shared state is atomic or under the lock.
unsafe impl Sync for Transfer {}

static CACHE: Cache<Transfer> = Cache::new();

impl Cached for Transfer {
    fn cache() -> &'static Cache<Self> {
        &CACHE
    }
}

// SAFETY: The count is atomic, and the object goes with the last reference.
unsafe impl AlwaysRefCounted for Transfer {
    fn inc_ref(&self) {
        self.references.add(1, Relaxed);
    }

    unsafe fn dec_ref(object: NonNull<Self>) {
        // SAFETY: The caller gives up a reference, so the object is still there.
        let before = unsafe { object.as_ref() }.references.fetch_sub(1, Full);
        if before == 1 {
            // SAFETY: That was the last reference.
            unsafe { slab::free(object) }
        }
    }
}

impl Transfer {
    /// A transfer with nothing in it. May sleep.
    ///
    /// With `iocb` its result goes there, otherwise to [`Transfer::wait`].
    pub(crate) fn new(
        iocb: Option<AsyncIocb>,
        file: Option<Arc<Counters>>,
        device: Arc<Counters>,
    ) -> Result<ARef<Self>> {
        let object = slab::allocate::<Self, Error>(try_pin_init!(Self {
            references: Atomic::new(1),
            outstanding: Atomic::new(1),
            file,
            device,
            outcome <- new_irq_spinlock!(
                Outcome { length: 0, failed: None, value: 0, iocb },
                "vdma_transfer"
            ),
            done <- Completion::new(),
        }? Error))?;
        // SAFETY: The object begins with the one reference that is handed out here.
        Ok(unsafe { ARef::from_raw(object) })
    }

    /// A request of this transfer is about to go to the device.
    pub(crate) fn request_submitted(&self, pages: usize, segments: usize) {
        self.outstanding.add(1, Relaxed);
        self.device.submit(pages, segments);
        if let Some(file) = &self.file {
            file.submit(pages, segments);
        }
    }

    /// The request of the last [`Transfer::request_submitted`] did not go after all.
    pub(crate) fn request_retracted(&self, pages: usize, segments: usize) {
        self.device.retract(pages, segments);
        if let Some(file) = &self.file {
            file.retract(pages, segments);
        }
        // The submitter's own count is still there, so this is never the last.
        let _ = self.outstanding.fetch_sub(1, Relaxed);
    }

    /// A request had to wait for room.
    pub(crate) fn queue_was_full(&self) {
        self.device.queue_full();
        if let Some(file) = &self.file {
            file.queue_full();
        }
    }

    /// A request is back. Any context.
    pub(crate) fn request_completed(&self, request: Completed) {
        let ok = request.result.is_ok();
        self.device.complete(request.direction, request.moved, ok);
        if let Some(file) = &self.file {
            file.complete(request.direction, request.moved, ok);
        }
        match request.result {
            Ok(_) if request.value != 0 => self.outcome.lock().value = request.value,
            Ok(_) => {}
            Err(error) => {
                let at = request.position + request.moved;
                let mut outcome = self.outcome.lock();
                if outcome.failed.map_or(true, |(first, _)| at < first) {
                    outcome.failed = Some((at, error));
                }
            }
        }
        self.put_outstanding();
    }

    /// The submitter has submitted `length` bytes, and will submit no more. Any context.
    pub(crate) fn submitted(&self, length: usize) {
        self.outcome.lock().length = length;
        self.put_outstanding();
    }

    /// Takes the iocb back from a transfer of which nothing was submitted: the call itself returns
    /// the error.
    pub(crate) fn cancel(&self) {
        self.outcome.lock().iocb = None;
    }

    fn put_outstanding(&self) {
        if self.outstanding.fetch_sub(1, Full) != 1 {
            return;
        }
        let (iocb, result) = {
            let mut outcome = self.outcome.lock();
            (outcome.iocb.take(), outcome.result())
        };
        match iocb {
            Some(iocb) => iocb.complete(result),
            None => self.done.complete_all(),
        }
    }

    /// Waits for the end, whatever happens. May sleep.
    pub(crate) fn wait(&self) -> Result<usize> {
        self.done.wait();
        self.outcome.lock().result()
    }

    /// Waits for the end; a signal ends the wait with `EINTR`, and the transfer goes on by itself.
    pub(crate) fn wait_interruptible(&self) -> Result<usize> {
        self.done.wait_interruptible()?;
        self.outcome.lock().result()
    }

    /// Waits for some milliseconds at the most: `ETIMEDOUT`, and the transfer goes on by itself.
    pub(crate) fn wait_milliseconds(&self, milliseconds: u32) -> Result<usize> {
        self.done.wait_milliseconds(milliseconds)?;
        self.outcome.lock().result()
    }
}
