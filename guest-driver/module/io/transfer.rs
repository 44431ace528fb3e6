// SPDX-License-Identifier: GPL-2.0

//! One call of read or write, one command, or an internal operation, made of one or more requests.
//!
//! A transfer longer than a request is split; its requests complete in any order. When the last of
//! them is back, and the caller has submitted all, the transfer completes once: into the caller's
//! `kiocb` or command, or to the task that waits for it. (An asynchronous read or write that fits into
//! one request has no transfer: see [`crate::io::request::Reply`].)

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::{
        Arc,
        aref::{ARef, AlwaysRefCounted},
        atomic::{Atomic, Full, Relaxed},
    },
};

use crate::{
    io::request::Answer,
    linux::{
        chardev::AsyncIocb,
        slab::{self, Cache, Cached},
        spinlock::{IrqSpinLock, new_irq_spinlock},
        uring_cmd::UringCommand,
        wait::Completion,
    },
    observe::Observer,
    protocol::crc32c,
};

/// How the values of a transfer's requests make that of the transfer.
#[derive(Clone, Copy)]
pub(crate) enum Combine {
    /// There is one request.
    Only,
    /// Each value is the index of the first difference in its part, or the length of the part.
    FirstDifference,
    /// Each value is the CRC32C of its part, of this many bytes in all.
    Crc32c(u64),
}

/// Who is told, if it is not a waiting task.
pub(crate) enum Completer {
    Iocb(AsyncIocb),
    Command(UringCommand),
}

struct Outcome {
    /// Bytes that were submitted.
    length: usize,
    /// First byte that was not moved, and why.
    failed: Option<(usize, Error)>,
    /// The value of the responses, put together.
    value: u64,
    completer: Option<Completer>,
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
    observer: Arc<Observer>,
    combine: Combine,
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
    /// With a `completer` its result goes there, otherwise to [`Transfer::wait`]. Its value begins as
    /// `value`.
    pub(crate) fn new(
        completer: Option<Completer>,
        observer: Arc<Observer>,
        combine: Combine,
        value: u64,
    ) -> Result<ARef<Self>> {
        let object = slab::allocate::<Self, Error>(try_pin_init!(Self {
            references: Atomic::new(1),
            outstanding: Atomic::new(1),
            observer,
            combine,
            outcome <- new_irq_spinlock!(
                Outcome { length: 0, failed: None, value, completer },
                "vdma_transfer"
            ),
            done <- Completion::new(),
        }? Error))?;
        // SAFETY: The object begins with the one reference that is handed out here.
        Ok(unsafe { ARef::from_raw(object) })
    }

    pub(crate) fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// A request of this transfer is about to go to the device: it will be back, or retracted.
    pub(crate) fn request_submitted(&self) {
        self.outstanding.add(1, Relaxed);
    }

    /// The request of the last [`Transfer::request_submitted`] did not go after all.
    pub(crate) fn request_retracted(&self) {
        // The submitter's own count is still there, so this is never the last.
        let _ = self.outstanding.fetch_sub(1, Relaxed);
    }

    /// The request that begins at byte `position` is back. Any context.
    pub(crate) fn request_completed(&self, position: usize, answer: Answer) {
        match answer.result {
            Ok(_) => {
                let end = (position + answer.moved) as u64;
                let mut outcome = self.outcome.lock();
                match self.combine {
                    Combine::Only => outcome.value = answer.value,
                    Combine::FirstDifference if answer.value < answer.moved as u64 => {
                        let at = position as u64 + answer.value;
                        outcome.value = outcome.value.min(at);
                    }
                    Combine::FirstDifference => {}
                    Combine::Crc32c(total) => {
                        let after = total.saturating_sub(end);
                        outcome.value ^= u64::from(crc32c::shift(answer.value as u32, after));
                    }
                }
            }
            Err(error) => {
                let at = position + answer.moved;
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

    /// Takes the completer back from a transfer of which nothing was submitted: the call itself
    /// returns the error.
    pub(crate) fn cancel(&self) {
        let completer = self.outcome.lock().completer.take();
        drop(completer);
    }

    fn put_outstanding(&self) {
        if self.outstanding.fetch_sub(1, Full) != 1 {
            return;
        }
        let (completer, result) = {
            let mut outcome = self.outcome.lock();
            (outcome.completer.take(), outcome.result())
        };
        match completer {
            Some(Completer::Iocb(iocb)) => iocb.complete(result),
            Some(Completer::Command(command)) => command.finish_in_task(self.into()),
            None => self.done.complete_all(),
        }
        self.observer.ended();
    }

    /// Whether it has ended, if nobody else is told.
    pub(crate) fn is_done(&self) -> bool {
        self.done.is_done()
    }

    /// Waits for the end, whatever happens. May sleep.
    pub(crate) fn wait(&self) -> Result<usize> {
        self.done.wait();
        self.result()
    }

    /// Waits for the end; a signal ends the wait with `EINTR`, and the transfer goes on by itself.
    pub(crate) fn wait_interruptible(&self) -> Result<usize> {
        self.done.wait_interruptible()?;
        self.result()
    }

    /// Waits for the end; only a signal that kills ends the wait, with `EINTR`.
    pub(crate) fn wait_killable(&self) -> Result {
        self.done.wait_killable()
    }

    /// Waits for some milliseconds at the most: `ETIMEDOUT`, and the transfer goes on by itself.
    pub(crate) fn wait_milliseconds(&self, milliseconds: u32) -> Result<usize> {
        self.done.wait_milliseconds(milliseconds)?;
        self.result()
    }

    /// Bytes up to the first failure, or the failure when there are none. Once it has ended.
    pub(crate) fn result(&self) -> Result<usize> {
        self.outcome.lock().result()
    }

    /// The value of the operation. Once it has ended.
    pub(crate) fn value(&self) -> u64 {
        self.outcome.lock().value
    }
}
