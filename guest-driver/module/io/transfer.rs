// SPDX-License-Identifier: GPL-2.0

//! The completion of one call of read or write, one command, or an internal operation, made of one
//! or more requests.
//!
//! A transfer longer than a request is split; its requests complete in any order. When the last of
//! them has completed, and the caller has submitted all, the transfer completes once: into the
//! caller's `kiocb` or command, or to the task that waits for it. (An asynchronous read or write
//! that fits into one request has no transfer: see [`crate::io::request::RequestTarget`].)

use kernel::{
    prelude::*,
    sync::{
        Arc,
        atomic::{Atomic, Full, Relaxed},
    },
};

use crate::{
    linux::{
        chardev::AsyncKiocb,
        list::Linked,
        slab::{Cache, CachedShared, Counted, SlabArc},
        spinlock::{IrqSpinLock, new_irq_spinlock},
        uring_cmd::UringCommand,
        wait::Completion,
        workqueue::{Deferred, DeferredQueue},
    },
    observe::Observer,
    protocol::crc32c,
};

/// How the values of a transfer's requests are combined.
#[derive(Clone, Copy)]
pub(crate) enum Combine {
    /// There is one request, or its value has no meaning.
    Only,
    /// Each value is the index of the first difference in its request, or the length of the
    /// request.
    FirstDifference,
    /// Each value is the CRC32C of its request's data; all have this many bytes together.
    Crc32c(u64),
}

/// What comes between the completion of an asynchronous write and that of its `kiocb`.
pub(crate) trait AfterWrite: Send {
    /// Completes `kiocb` in the end, of a write that has moved this number of bytes. Called once,
    /// in process context. May sleep.
    fn run(&mut self, kiocb: AsyncKiocb, bytes: usize);
}

/// A write that completes before its `kiocb` does.
pub(crate) struct Written {
    after: KBox<dyn AfterWrite>,
    kiocb: Option<AsyncKiocb>,
    /// Bytes that the write has moved.
    bytes: usize,
    next: Option<KBox<Written>>,
}

/// Writes that have completed, and wait for what comes after: that takes descriptors, for which
/// interrupt context cannot wait.
pub(crate) static WRITTEN: DeferredQueue<KBox<Written>> = DeferredQueue::new();

impl Linked for KBox<Written> {
    fn set_next(&mut self, next: Option<Self>) {
        self.next = next;
    }

    fn take_next(&mut self) -> Option<Self> {
        self.next.take()
    }
}

impl Deferred for KBox<Written> {
    fn run(mut self) {
        if let Some(kiocb) = self.kiocb.take() {
            let bytes = self.bytes;
            self.after.run(kiocb, bytes);
        }
    }
}

impl Written {
    /// Leaves a write that has completed with `result` to a work item; otherwise returns the
    /// `kiocb`, and the error to complete it with. Any context.
    fn go_on(mut written: KBox<Self>, result: Result<usize>) -> Option<(AsyncKiocb, Error)> {
        let (mut written, error) = match result {
            Ok(bytes) => {
                written.bytes = bytes;
                (WRITTEN.push(written).err()?, ENODEV)
            }
            Err(error) => (written, error),
        };
        Some((written.kiocb.take()?, error))
    }

    /// A write that is still to be submitted: [`TransferTarget::after_write`] is next. May sleep.
    pub(crate) fn new(after: KBox<dyn AfterWrite>) -> Result<KBox<Self>> {
        let written = Self {
            after,
            kiocb: None,
            bytes: 0,
            next: None,
        };
        Ok(KBox::new(written, GFP_KERNEL)?)
    }
}

/// Completion target of a transfer that no task waits for.
pub(crate) enum TransferTarget {
    /// The `kiocb` of an asynchronous read or write.
    Kiocb(AsyncKiocb),
    /// What comes after an asynchronous write, and completes its `kiocb`.
    AfterWrite(KBox<Written>),
    /// A command of io_uring.
    Command(UringCommand),
}

impl TransferTarget {
    /// Completes `kiocb` after what comes after the write.
    pub(super) fn after_write(mut written: KBox<Written>, kiocb: AsyncKiocb) -> Self {
        written.kiocb = Some(kiocb);
        Self::AfterWrite(written)
    }

    /// The `kiocb`, if it is one's.
    pub(super) fn into_kiocb(self) -> Option<AsyncKiocb> {
        match self {
            Self::Kiocb(kiocb) => Some(kiocb),
            Self::AfterWrite(mut written) => written.kiocb.take(),
            Self::Command(_) => None,
        }
    }

    /// The command, if it is one.
    pub(super) fn into_command(self) -> Option<UringCommand> {
        match self {
            Self::Kiocb(_) | Self::AfterWrite(_) => None,
            Self::Command(command) => Some(command),
        }
    }
}

/// Outcome of one request: the device's response, checked.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    /// Bytes moved, or why not all were.
    pub(crate) result: Result<usize>,
    /// Bytes moved before an error; equal to the result without one.
    pub(crate) moved: usize,
    /// The value of the response.
    pub(crate) value: u64,
}

impl Outcome {
    /// No bytes were moved, because of `error`.
    pub(crate) fn failed(error: Error) -> Self {
        Self {
            result: Err(error),
            moved: 0,
            value: 0,
        }
    }

    /// The result of a call: the bytes that were moved, the error if there are none.
    pub(crate) fn bytes(&self) -> Result<usize> {
        match self.moved {
            0 => self.result,
            moved => Ok(moved),
        }
    }
}

/// What the lock of a transfer protects.
struct Progress {
    /// Bytes that were submitted.
    length: usize,
    /// First byte that was not moved, and why.
    failed: Option<(usize, Error)>,
    /// The values of the responses, combined.
    value: u64,
    target: Option<TransferTarget>,
}

impl Progress {
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
    /// Requests that have not completed, and one for the submitter until it has submitted all.
    outstanding: Atomic<i32>,
    observer: Arc<Observer>,
    combine: Combine,
    #[pin]
    progress: IrqSpinLock<Progress>,
    #[pin]
    done: Completion,
}

static CACHE: Cache<Counted<Transfer>> = Cache::new();

impl CachedShared for Transfer {
    fn cache() -> &'static Cache<Counted<Self>> {
        &CACHE
    }
}

impl Transfer {
    /// A transfer with nothing in it. May sleep.
    ///
    /// It completes into `target`, or else wakes the task in [`Transfer::wait`]. Its value begins
    /// as `value`. On failure the target remains the caller's.
    pub(crate) fn new(
        target: &mut Option<TransferTarget>,
        observer: Arc<Observer>,
        combine: Combine,
        value: u64,
    ) -> Result<SlabArc<Self>> {
        SlabArc::new::<Error>(try_pin_init!(Self {
            outstanding: Atomic::new(1),
            observer,
            combine,
            progress <- new_irq_spinlock!(
                Progress { length: 0, failed: None, value, target: target.take() },
                "vdma_transfer"
            ),
            done <- Completion::new(),
        }? Error))
    }

    pub(crate) fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// Counts a request that is about to be submitted: it will complete, or be unaccounted.
    pub(crate) fn account_request(&self) {
        self.outstanding.add(1, Relaxed);
    }

    /// Undoes the last [`Transfer::account_request`], of a request that was not submitted after
    /// all.
    pub(crate) fn unaccount_request(&self) {
        // The submitter's own count is still there, so this is never the last.
        let _ = self.outstanding.fetch_sub(1, Relaxed);
    }

    /// Takes the target of a transfer of which nothing was submitted: the call itself returns the
    /// error.
    pub(crate) fn cancel(&self) -> Option<TransferTarget> {
        self.progress.lock().target.take()
    }

    /// Whether it has completed; only for a transfer without a target.
    pub(crate) fn is_done(&self) -> bool {
        self.done.is_done()
    }

    /// Waits for the completion, uninterruptibly. May sleep.
    pub(crate) fn wait(&self) -> Result<usize> {
        self.done.wait();
        self.result()
    }

    /// Waits for the completion; a signal ends the wait with `EINTR`, and the transfer continues by
    /// itself.
    pub(crate) fn wait_interruptible(&self) -> Result<usize> {
        self.done.wait_interruptible()?;
        self.result()
    }

    /// Waits for the completion; only a fatal signal ends the wait, with `EINTR`.
    pub(crate) fn wait_killable(&self) -> Result {
        self.done.wait_killable()
    }

    /// Waits for up to `milliseconds`: `ETIMEDOUT`, and the transfer continues by itself.
    pub(crate) fn wait_milliseconds(&self, milliseconds: u32) -> Result<usize> {
        self.done.wait_milliseconds(milliseconds)?;
        self.result()
    }

    /// Bytes up to the first failure, or the failure when there are none. Once it has completed.
    pub(crate) fn result(&self) -> Result<usize> {
        self.progress.lock().result()
    }

    /// The value of the operation. Once it has completed.
    pub(crate) fn value(&self) -> u64 {
        self.progress.lock().value
    }
}

impl SlabArc<Transfer> {
    /// The request that begins at byte `position` has completed. Any context.
    pub(crate) fn request_completed(&self, position: usize, outcome: Outcome) {
        match outcome.result {
            Ok(_) => {
                let end = (position + outcome.moved) as u64;
                let mut progress = self.progress.lock();
                match self.combine {
                    Combine::Only => progress.value = outcome.value,
                    Combine::FirstDifference if outcome.value < outcome.moved as u64 => {
                        let at = position as u64 + outcome.value;
                        progress.value = progress.value.min(at);
                    }
                    Combine::FirstDifference => {}
                    Combine::Crc32c(total) => {
                        let after = total.saturating_sub(end);
                        progress.value ^= u64::from(crc32c::shift(outcome.value as u32, after));
                    }
                }
            }
            Err(error) => {
                let at = position + outcome.moved;
                let mut progress = self.progress.lock();
                if progress.failed.map_or(true, |(first, _)| at < first) {
                    progress.failed = Some((at, error));
                }
            }
        }
        self.put_outstanding();
    }

    /// The submitter has submitted `length` bytes, and will submit no more. Any context.
    pub(crate) fn finish_submission(&self, length: usize) {
        self.progress.lock().length = length;
        self.put_outstanding();
    }

    fn put_outstanding(&self) {
        if self.outstanding.fetch_sub(1, Full) != 1 {
            return;
        }
        let (target, result) = {
            let mut progress = self.progress.lock();
            (progress.target.take(), progress.result())
        };
        match target {
            Some(TransferTarget::Kiocb(kiocb)) => kiocb.complete(result),
            Some(TransferTarget::AfterWrite(written)) => match Written::go_on(written, result) {
                // The call has not ended.
                None => return,
                Some((kiocb, error)) => kiocb.complete(Err(error)),
            },
            Some(TransferTarget::Command(command)) => command.finish_in_task(self.clone()),
            None => self.done.complete_all(),
        }
        self.observer.ended();
    }
}
