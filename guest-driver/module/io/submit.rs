// SPDX-License-Identifier: GPL-2.0

//! Submission: a read, a write or a command becomes requests, which go to a queue.

use kernel::{page::PAGE_SIZE, prelude::*, sync::Arc};

use crate::{
    io::{
        busy_poll::Budget,
        device::{Limits, Vdma},
        durable, inline_copy,
        queue::{self, BusyPollGuard, Queue, WhenFull},
        request::{Request, RequestTarget},
        transfer::{Combine, Transfer, TransferTarget},
    },
    linux::{
        blk_plug,
        chardev::{AsyncKiocb, IoResult, Kiocb},
        compat, delay,
        iov_iter::IovIter,
        page_list::PageList,
        slab::{SlabArc, SlabBox},
        wait::fatal_signal_pending,
    },
    observe::{Observer, counters::Direction},
    operations::buffer::DmaBuffer,
    protocol::{Argument, Operation, RequestHeader, ResultValue, crc32c},
};

/// Milliseconds that a device whose requests are late has to complete a NOP.
const SIGN_OF_LIFE_MS: u32 = 2_000;

/// Most scatter-gather entries of a request, where the device starts with one while the next is
/// made: pinning pages is what takes time, and those that coalesce are pinned together.
const PIPELINED_SEGMENTS: usize = 32;

/// Most requests of a non-blocking call: pinning takes its time as well.
const MAX_NOWAIT_REQUESTS: usize = 8;

/// How an operation is submitted.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    /// The caller sleeps until the operation completes. The device is kicked for each request, and
    /// works on one while the pages of the next are being pinned.
    Sleep,
    /// As `Sleep`, but the caller busy-polls first.
    BusyPoll(Budget),
    /// The caller goes on. The device is kicked when the block plug ends, for all that was
    /// submitted under it.
    Asynchronous,
    /// As `Asynchronous`, and the caller reaps completions with `iopoll`, without interrupts.
    IoPoll,
}

impl Mode {
    fn is_asynchronous(self) -> bool {
        matches!(self, Self::Asynchronous | Self::IoPoll)
    }
}

/// Memory that an operation works on.
pub(crate) enum DmaMemory<'a> {
    /// None: the operation has no such data.
    None,
    /// The caller's, to be pinned.
    Caller(IovIter<'a>),
    /// A buffer's, from an offset on.
    Buffer(Arc<DmaBuffer>, usize),
}

impl DmaMemory<'_> {
    fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Puts the pages of the next request, which begins at byte `done`, into `pages`, which are
    /// empty. May sleep.
    fn take(&mut self, pages: &mut PageList<DmaBuffer>, done: usize, limits: Limits) -> Result {
        let Limits {
            max_bytes,
            max_segments,
            max_segment_size,
        } = limits;
        match self {
            Self::None => Ok(()),
            Self::Caller(iter) => {
                let entries = iter.page_bound(max_segments);
                pages.take(iter, max_bytes, entries, max_segment_size)
            }
            Self::Buffer(buffer, offset) => pages.share(
                buffer,
                *offset + done,
                max_bytes,
                max_segments,
                max_segment_size,
            ),
        }
    }

    /// Gives the last `bytes` that were taken back, after a failure.
    fn revert(&mut self, bytes: usize) {
        if let Self::Caller(iter) = self {
            iter.revert(bytes);
        }
    }
}

/// An operation as a whole, with its memory: it becomes one request or several.
pub(crate) struct DmaOperation<'a> {
    pub(crate) operation: Operation,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) argument: u64,
    /// The value of the response is the CRC32C of the data, and is compared with the CPU's.
    pub(crate) verified: bool,
    /// Data that the device reads.
    pub(crate) outgoing: DmaMemory<'a>,
    /// Data that the device writes.
    pub(crate) incoming: DmaMemory<'a>,
}

impl DmaOperation<'_> {
    /// How the values of the requests make that of the whole, and what that begins as.
    fn combination(&self) -> (Combine, u64) {
        match self.operation.shape().value {
            ResultValue::None => (Combine::Only, 0),
            ResultValue::FirstDifference => (Combine::FirstDifference, self.length),
            ResultValue::Checksum => {
                // The checksum that is continued counts as that of a request before all others.
                let before = crc32c::shift(self.argument as u32, self.length);
                (Combine::Crc32c(self.length), before.into())
            }
        }
    }

    /// Bytes of the request, without data, that begins at byte `done`.
    fn length_at(&self, done: usize, limit: usize) -> usize {
        let left = self.length as usize - done;
        if self.operation.shape().divisible {
            left.min(limit)
        } else {
            left
        }
    }

    /// The header of the request for `bytes` bytes from byte `done` on.
    fn header_at(&self, done: usize, bytes: usize) -> RequestHeader {
        let shape = self.operation.shape();
        let offset = if shape.has_range() {
            self.offset + done as u64
        } else {
            self.offset
        };
        let argument = match shape.argument {
            // Requests begin anywhere in the pattern.
            Argument::Pattern => self.argument.rotate_right((done % 8 * 8) as u32),
            // The driver combines the checksums.
            Argument::Checksum => 0,
            Argument::Offset | Argument::Ignored => self.argument,
        };
        RequestHeader::new(self.operation, offset, bytes as u64, argument)
    }
}

/// A call of read or write.
#[derive(Clone, Copy)]
struct Call<'a> {
    observer: &'a Arc<Observer>,
    direction: Direction,
    /// Byte of device memory at which it begins.
    position: u64,
    when_full: WhenFull,
    /// The caller polls for the completion (`IOCB_HIPRI`).
    polled: bool,
    /// A write that completes only after a FLUSH that covers it.
    synchronous: bool,
}

impl Call<'_> {
    fn asynchronous_mode(&self) -> Mode {
        if self.polled {
            Mode::IoPoll
        } else {
            Mode::Asynchronous
        }
    }
}

/// An operation that has been submitted.
pub(crate) struct Submitted<'a> {
    pub(crate) transfer: SlabArc<Transfer>,
    /// The busy-poll that has started with the last request, if one has.
    busy_poll: Option<BusyPollGuard<'a>>,
}

impl Vdma {
    /// Moves the caller's buffers to or from device memory.
    ///
    /// The pages are pinned and the requests submitted in the caller's context. An asynchronous
    /// call ends there, a plain one waits.
    pub(crate) fn read_write<'k>(
        &self,
        observer: &Arc<Observer>,
        direction: Direction,
        kiocb: Kiocb<'k>,
        mut iter: IovIter<'_>,
    ) -> IoResult<'k> {
        let is_write = direction == Direction::Write;
        let position = if is_write && kiocb.appends() {
            self.info.memory_size
        } else {
            kiocb.position()
        };
        let left = self.info.memory_size.saturating_sub(position);
        let length = iter.len();
        if length == 0 {
            return kiocb.finish(Ok(0));
        }
        if left == 0 {
            return kiocb.finish(match direction {
                Direction::Write => Err(ENOSPC),
                _ => Ok(0),
            });
        }
        if length as u64 > left {
            iter.truncate(left as usize);
        }
        let synchronous = is_write && kiocb.synchronous();
        if synchronous && !self.has_flush() {
            return kiocb.finish(Err(compat::not_supported()));
        }
        if iter.len() <= self.inline_bytes && !synchronous {
            let bar = self.bar.as_deref();
            if let Some(copied) = inline_copy::copy(bar, direction, position, &mut iter) {
                if let Ok(bytes) = copied {
                    observer.count(|counters| {
                        counters.inline_copies.add(1);
                        counters.moved(direction, bytes);
                    });
                }
                return kiocb.finish(copied);
            }
        }
        let call = Call {
            observer,
            direction,
            position,
            when_full: WhenFull::of_call(kiocb.non_blocking(), kiocb.no_wait()),
            polled: kiocb.polled(),
            synchronous,
        };
        match kiocb.into_async() {
            Ok((caller, queued)) => match self.submit_asynchronous(call, caller, iter) {
                Ok(()) => queued.queued(),
                Err((error, caller)) => queued.failed(error, caller),
            },
            Err(kiocb) => kiocb.finish(self.submit_and_wait(call, iter)),
        }
    }

    /// Submits a read or write that completes into the caller's `kiocb`.
    fn submit_asynchronous(
        &self,
        call: Call<'_>,
        caller: AsyncKiocb,
        mut iter: IovIter<'_>,
    ) -> Result<(), (Error, Option<AsyncKiocb>)> {
        if !call.synchronous {
            if let Some(pages) = self.pages_of_one_request(&iter) {
                return self.submit_whole(call, caller, &mut iter, pages);
            }
        }
        if let Err(error) = self.check_free_descriptors(&iter, call.when_full) {
            return Err((error, Some(caller)));
        }
        let target = if call.synchronous {
            self.target_after_flush(call, caller)
                .map_err(|(error, caller)| (error, Some(caller)))?
        } else {
            TransferTarget::Kiocb(caller)
        };
        let operation = self.read_write_operation(call, iter);
        let mut target = Some(target);
        let mode = call.asynchronous_mode();
        match self.submit(call.observer, operation, &mut target, mode, call.when_full) {
            Ok(_) => Ok(()),
            Err(error) => Err((error, target.and_then(TransferTarget::into_kiocb))),
        }
    }

    /// The target that completes `caller` after a FLUSH that covers the write.
    fn target_after_flush(
        &self,
        call: Call<'_>,
        caller: AsyncKiocb,
    ) -> Result<TransferTarget, (Error, AsyncKiocb)> {
        match queue::of_current_cpu(&self.queues) {
            Ok(queue) => durable::flush_before(queue, call.observer, caller),
            Err(error) => Err((error, caller)),
        }
    }

    /// Submits a read or write and waits for it.
    fn submit_and_wait(&self, call: Call<'_>, iter: IovIter<'_>) -> Result<usize> {
        // Lent pages stay with their owner only until the call ends, so a signal must not end it
        // before the device is done with them.
        let interruptible = iter.will_pin();
        let budget = if call.polled {
            Budget::Unlimited
        } else {
            Budget::Adaptive
        };
        let mode = if interruptible {
            Mode::BusyPoll(budget)
        } else {
            Mode::Sleep
        };
        if self.pages_of_one_request(&iter).is_none() {
            self.check_free_descriptors(&iter, call.when_full)?;
        }
        let operation = self.read_write_operation(call, iter);
        let length = operation.length;
        let Submitted {
            transfer,
            busy_poll,
        } = self.submit(call.observer, operation, &mut None, mode, call.when_full)?;
        if let Some(guard) = busy_poll {
            let poll = || self.poll_completions();
            let completions = self.busy_poll.run(&transfer, length, budget, guard, poll);
            call.observer
                .count(|counters| counters.polled.add(completions));
        }
        let bytes = if interruptible {
            transfer.wait_interruptible()
        } else {
            transfer.wait()
        }?;
        if call.synchronous {
            let flush = self.submit_flush(call.observer.clone())?;
            flush.wait_killable()?;
            flush.result()?;
        }
        Ok(bytes)
    }

    /// The operation code that moves data in `direction`, and whether the checksum is to be
    /// verified: with the parameter `verify`, and a device that has such an operation.
    fn read_write_code(&self, direction: Direction) -> (Operation, bool) {
        let (plain, checked) = match direction {
            Direction::Write => (Operation::Write, Operation::WriteCrc32c),
            _ => (Operation::Read, Operation::ReadCrc32c),
        };
        let verified = self.verifies && self.info.operations & checked.bit() != 0;
        (if verified { checked } else { plain }, verified)
    }

    /// The operation that moves the caller's buffers as `call` says.
    fn read_write_operation<'a>(&self, call: Call<'_>, iter: IovIter<'a>) -> DmaOperation<'a> {
        let (operation, verified) = self.read_write_code(call.direction);
        let length = iter.len() as u64;
        let data = DmaMemory::Caller(iter);
        let (outgoing, incoming) = match call.direction {
            Direction::Write => (data, DmaMemory::None),
            _ => (DmaMemory::None, data),
        };
        DmaOperation {
            operation,
            offset: call.position,
            length,
            argument: 0,
            verified,
            outgoing,
            incoming,
        }
    }

    /// Upper bound for the pages of `iter`, if they are certain to fit into one request.
    fn pages_of_one_request(&self, iter: &IovIter<'_>) -> Option<usize> {
        let Limits {
            max_bytes,
            max_segments,
            ..
        } = self.limits;
        let pages = iter.page_bound(max_segments + 1);
        (pages <= max_segments && iter.len() <= max_bytes).then_some(pages)
    }

    /// `EAGAIN` for [`WhenFull::Fail`], unless descriptors are free for all requests that `iter`
    /// may need, and these are few. Others may take the descriptors first: then the caller waits
    /// after all, rather than stop half-way.
    fn check_free_descriptors(&self, iter: &IovIter<'_>, when_full: WhenFull) -> Result {
        if when_full != WhenFull::Fail {
            return Ok(());
        }
        let max_segments = self.limits.max_segments;
        let pages = iter.page_bound(MAX_NOWAIT_REQUESTS * max_segments + 1);
        let requests = pages
            .div_ceil(max_segments)
            .max(iter.len().div_ceil(self.limits.max_bytes));
        let fit = requests <= MAX_NOWAIT_REQUESTS
            && queue::of_current_cpu(&self.queues)
                .is_ok_and(|queue| queue.has_free_descriptors(requests));
        if fit { Ok(()) } else { Err(EAGAIN) }
    }

    /// Whether an operation of `length` bytes, with one piece of data on each side that has any, is
    /// certain to fit into one request.
    pub(crate) fn fits_one_request(&self, operation: &DmaOperation<'_>) -> bool {
        let limits = self.request_limits(operation, false);
        let has_data = operation.outgoing.is_some() || operation.incoming.is_some();
        let length = operation.length as usize;
        length <= limits.max_bytes
            && !(has_data && length.div_ceil(PAGE_SIZE) >= limits.max_segments)
    }

    /// Limits of the requests of an operation: half of the segments for one that has data on both
    /// sides, which have to be equally long, so that its requests are short enough for any pages to
    /// fit.
    fn request_limits(&self, operation: &DmaOperation<'_>, pipelined: bool) -> Limits {
        let max_segments = if pipelined {
            self.limits.max_segments.min(PIPELINED_SEGMENTS)
        } else {
            self.limits.max_segments
        };
        if operation.outgoing.is_some() && operation.incoming.is_some() {
            self.limits.for_any_pages(max_segments / 2)
        } else {
            Limits {
                max_segments,
                ..self.limits
            }
        }
    }

    /// Submits one request for a whole read or write, of up to `pages` pages
    /// ([`Self::pages_of_one_request`]), which completes right into the caller's `kiocb`.
    fn submit_whole(
        &self,
        call: Call<'_>,
        caller: AsyncKiocb,
        iter: &mut IovIter<'_>,
        pages: usize,
    ) -> Result<(), (Error, Option<AsyncKiocb>)> {
        let (queue, mut request) = match self.whole_request(call, iter, pages) {
            Ok(request) => request,
            Err(error) => return Err((error, Some(caller))),
        };
        request.set_target(RequestTarget::Kiocb(caller));
        let bytes = request.bytes();
        let kick = !blk_plug::defer(queue);
        queue
            .submit(request, call.when_full, kick)
            .map_err(|(error, mut request)| {
                iter.revert(bytes);
                (error, request.take_target().into_kiocb())
            })
    }

    /// The request for a whole read or write, without a target, and the queue for it.
    fn whole_request(
        &self,
        call: Call<'_>,
        iter: &mut IovIter<'_>,
        pages: usize,
    ) -> Result<(&Arc<Queue>, SlabBox<Request>)> {
        let queue = queue::of_current_cpu(&self.queues)?;
        let (operation, verified) = self.read_write_code(call.direction);
        let mut request = SlabBox::<Request>::create(
            RequestTarget::None,
            call.observer.clone(),
            call.polled,
            verified,
        )?;
        let (outgoing, incoming) = request.data();
        let is_write = call.direction == Direction::Write;
        let held = if is_write { outgoing } else { incoming };
        held.take(
            iter,
            self.limits.max_bytes,
            pages,
            self.limits.max_segment_size,
        )?;
        held.bring_within(self.reach, is_write)?;
        let bytes = held.bytes();
        request.prepare(RequestHeader::new(
            operation,
            call.position,
            bytes as u64,
            0,
        ));
        Ok((queue, request))
    }

    /// Submits requests for all of `operation`.
    ///
    /// When something fails on the way, what was submitted by then is all that the transfer does.
    /// When nothing was, the error is returned, and the target remains the caller's.
    pub(crate) fn submit(
        &self,
        observer: &Arc<Observer>,
        mut operation: DmaOperation<'_>,
        target: &mut Option<TransferTarget>,
        mode: Mode,
        when_full: WhenFull,
    ) -> Result<Submitted<'_>> {
        let (combine, value) = operation.combination();
        let queue = queue::of_current_cpu(&self.queues)?;
        let transfer = Transfer::new(target, observer.clone(), combine, value)?;
        // More requests need more descriptors, for which a non-blocking caller does not wait.
        let pipelined = !mode.is_asynchronous() && when_full == WhenFull::Wait;
        let submitter = Submitter {
            device: self,
            queue,
            transfer: &transfer,
            limits: self.request_limits(&operation, pipelined),
            mode,
            when_full,
            pipelined,
        };
        match submitter.submit_all(&mut operation) {
            Ok((done, busy_poll)) => {
                if done < operation.length as usize {
                    queue.kick();
                }
                transfer.finish_submission(done);
                Ok(Submitted {
                    transfer,
                    busy_poll,
                })
            }
            Err(error) => {
                *target = transfer.cancel();
                Err(error)
            }
        }
    }

    /// Completes requests that the device has used; returns how many.
    pub(crate) fn poll_completions(&self) -> usize {
        self.queues
            .iter()
            .map(|queue| queue.poll_completions())
            .sum()
    }

    /// Makes durable what was completed before. A signal ends the wait with `EINTR`.
    pub(crate) fn flush(&self, observer: Arc<Observer>) -> Result {
        if !self.has_flush() {
            return Err(compat::not_supported());
        }
        self.submit_flush(observer)?
            .wait_interruptible()
            .map(|_| ())
    }

    /// Whether the device can be told to make durable what has completed.
    fn has_flush(&self) -> bool {
        self.info.operations & Operation::Flush.bit() != 0
    }

    /// Submits a FLUSH, which covers what has completed.
    fn submit_flush(&self, observer: Arc<Observer>) -> Result<SlabArc<Transfer>> {
        let queue = queue::of_current_cpu(&self.queues)?;
        submit_empty(queue, Operation::Flush, observer, WhenFull::Wait)
    }

    /// Whether the device completes any request now. May sleep.
    pub(crate) fn is_alive(&self) -> bool {
        let returned = || self.queues.iter().map(|queue| queue.returned());
        let before = returned().fold(0, usize::wrapping_add);
        let completed_nop = self.queues.iter().any(|queue| {
            let observer = self.observer.clone();
            match submit_empty(queue, Operation::Nop, observer, WhenFull::Fail) {
                Ok(transfer) => transfer.wait_milliseconds(SIGN_OF_LIFE_MS).is_ok(),
                Err(_) => {
                    // No descriptor is free for a NOP, but the device may be at work all the same.
                    delay::sleep_ms(SIGN_OF_LIFE_MS);
                    false
                }
            }
        });
        completed_nop || returned().fold(0, usize::wrapping_add) != before
    }
}

/// What submits the requests of one operation.
#[derive(Clone, Copy)]
struct Submitter<'a, 't> {
    device: &'a Vdma,
    queue: &'a Arc<Queue>,
    transfer: &'t SlabArc<Transfer>,
    limits: Limits,
    mode: Mode,
    when_full: WhenFull,
    /// The device is kicked for each request.
    pipelined: bool,
}

impl<'a> Submitter<'a, '_> {
    /// Submits requests for all of `operation`, as far as nothing fails. Returns the bytes that
    /// were submitted, and the busy-poll that has started with the last request.
    ///
    /// Busy-polling starts no earlier: until the pages of all requests are pinned, which takes as
    /// long as page faults take, others need the interrupts.
    fn submit_all(
        mut self,
        operation: &mut DmaOperation<'_>,
    ) -> Result<(usize, Option<BusyPollGuard<'a>>)> {
        let length = operation.length as usize;
        if length == 0 {
            operation.outgoing = DmaMemory::None;
            operation.incoming = DmaMemory::None;
        }
        let mut done = 0;
        loop {
            match self.submit_next(operation, done) {
                Ok((bytes, busy_poll)) => {
                    done += bytes;
                    if bytes == 0 || done >= length {
                        return Ok((done, busy_poll));
                    }
                    if fatal_signal_pending() {
                        return Ok((done, None));
                    }
                    // Such a caller has checked for free descriptors before.
                    if self.when_full == WhenFull::Fail {
                        self.when_full = WhenFull::Wait;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok((done, None)),
            }
        }
    }

    /// Submits the request that begins at byte `done` of the operation. Returns how many bytes it
    /// has, and the busy-poll that starts with the last one, if the mode says so.
    fn submit_next(
        &self,
        operation: &mut DmaOperation<'_>,
        done: usize,
    ) -> Result<(usize, Option<BusyPollGuard<'a>>)> {
        let target = RequestTarget::Transfer(self.transfer.clone(), done);
        let observer = self.transfer.observer().clone();
        let polled = matches!(self.mode, Mode::IoPoll);
        let mut request = SlabBox::<Request>::create(target, observer, polled, operation.verified)?;
        let bytes = self.take_memory(operation, done, &mut request)?;
        request.prepare(operation.header_at(done, bytes));
        let is_last = done + bytes >= operation.length as usize;
        let busy_poll = match self.mode {
            Mode::BusyPoll(budget) if is_last => self.device.busy_poll.start(self.queue, budget),
            _ => None,
        };
        let mut kick = self.pipelined || is_last;
        if kick && self.mode.is_asynchronous() {
            kick = !blk_plug::defer(self.queue);
        }
        if let Err((error, _)) = self.queue.submit(request, self.when_full, kick) {
            operation.outgoing.revert(bytes);
            operation.incoming.revert(bytes);
            return Err(error);
        }
        Ok((bytes, busy_poll))
    }

    /// Gives a request the memory from byte `done` of the operation on. Returns its bytes.
    fn take_memory(
        &self,
        operation: &mut DmaOperation<'_>,
        done: usize,
        request: &mut SlabBox<Request>,
    ) -> Result<usize> {
        let mut limits = self.limits;
        limits.max_bytes = limits.max_bytes.min(operation.length as usize - done);
        let (has_outgoing, has_incoming) =
            (operation.outgoing.is_some(), operation.incoming.is_some());
        let (read, written) = request.data();
        operation.outgoing.take(read, done, limits)?;
        if has_outgoing && has_incoming {
            limits.max_bytes = read.bytes();
        }
        operation.incoming.take(written, done, limits)?;
        let bytes = match (has_outgoing, has_incoming) {
            (false, false) => operation.length_at(done, limits.max_bytes),
            (true, false) => read.bytes(),
            (false, true) => written.bytes(),
            (true, true) if read.bytes() == written.bytes() => read.bytes(),
            (true, true) => return Err(EFAULT),
        };
        read.bring_within(self.device.reach, true)?;
        written.bring_within(self.device.reach, false)?;
        Ok(bytes)
    }
}

/// Submits a request without data or range.
pub(crate) fn submit_empty(
    queue: &Queue,
    operation: Operation,
    observer: Arc<Observer>,
    when_full: WhenFull,
) -> Result<SlabArc<Transfer>> {
    let transfer = Transfer::new(&mut None, observer.clone(), Combine::Only, 0)?;
    let target = RequestTarget::Transfer(transfer.clone(), 0);
    let mut request = SlabBox::<Request>::create(target, observer, false, false)?;
    request.prepare(RequestHeader::new(operation, 0, 0, 0));
    queue
        .submit(request, when_full, true)
        .map_err(|(error, _)| error)?;
    transfer.finish_submission(0);
    Ok(transfer)
}
