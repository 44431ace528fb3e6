// SPDX-License-Identifier: GPL-2.0

//! A vdma device as open files see it: transfers and commands become requests, device memory is mapped.

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, aref::ARef},
};

use crate::{
    io::{
        bounce::Reach,
        busy_poll::Patience,
        pages::Buffers,
        plug,
        queue::{Looking, Queue, WhenFull},
        request::{Reply, Request},
        transfer::{Combine, Transfer},
    },
    linux::{
        chardev::{AsyncIocb, Poll, Readiness},
        compat, cpu, delay,
        slab::SlabBox,
        vma::{Fault, FaultResult, Mappable, NewMapping, SharedSpace},
    },
    memory::{bar::Bar, explain},
    observe::{DeviceObserver, Observer, counters::Direction},
    operations::command::{Job, Limits, Memory},
    protocol::{DeviceInfo, Operation, RequestHeader},
};

/// Milliseconds that a device, whose requests are late, has to answer one that does nothing.
const SIGN_OF_LIFE_MS: u32 = 2_000;

/// How requests are submitted.
#[derive(Clone, Copy)]
pub(crate) struct Submit {
    pub(crate) when_full: WhenFull,
    /// Whether the submitter looks for the completion.
    pub(crate) polled: bool,
    /// Whether the answer's value is a CRC32C of the data to compare with.
    pub(crate) verified: bool,
    /// Whether the device need not hear of it before the task has submitted all it has.
    pub(crate) batched: bool,
    /// Whether the caller waits, so that the device had better begin with the first part while the pages
    /// of the next are being pinned.
    pub(crate) pipelined: bool,
    /// Whether the caller may look for the completion, and if so, whether it does even where that has
    /// not paid lately.
    pub(crate) looks: Option<bool>,
}

/// A read (from device memory) or a write (to it), and where in device memory it begins.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) direction: Direction,
    pub(crate) position: u64,
}

impl Place {
    /// The data that the device reads, and that it writes.
    pub(crate) fn memory(self, buffers: Buffers<'_>) -> (Memory<'_>, Memory<'_>) {
        let data = Memory::Caller(buffers);
        match self.direction {
            Direction::Write => (data, Memory::None),
            _ => (Memory::None, data),
        }
    }
}

/// A job on its way to becoming requests.
#[derive(Clone, Copy)]
struct Parts<'a> {
    queue: &'a Queue,
    transfer: &'a ARef<Transfer>,
    job: &'a Job,
    limits: Limits,
    submit: Submit,
}

/// Most scatter-gather entries of a part, where the device begins with one while the next is made: what
/// takes time is to pin pages, and those that coalesce are pinned together.
const PIPELINED_ENTRIES: usize = 32;

/// Most requests that a caller submits who may not wait: pinning takes its time as well.
const MAX_NOWAIT_PARTS: usize = 8;

/// Bytes that are copied at a time through the BAR; they are on the stack.
const INLINE_STEP: usize = 256;

/// A vdma device. Open files keep it; when the device is gone all that is left of it is an answer of
/// `ENODEV`.
#[pin_data]
pub(crate) struct Vdma {
    queues: Arc<Queues>,
    info: DeviceInfo,
    limits: Limits,
    reach: Reach,
    bar: Option<Pin<KBox<Bar>>>,
    /// Of the driver's own requests.
    observer: Arc<Observer>,
    patience: Patience,
    /// Parameters of the module, which do not change once it is loaded.
    inline_bytes: usize,
    verifies: bool,
    space: Arc<SharedSpace>,
}

impl Vdma {
    /// A device whose queues are in use.
    pub(crate) fn new(
        queues: Arc<Queues>,
        info: DeviceInfo,
        limits: Limits,
        reach: Reach,
        bar: Option<Pin<KBox<Bar>>>,
        observer: Arc<Observer>,
    ) -> Result<Arc<Self>> {
        let inline_bytes = compat::number(crate::module_parameters::inline_bytes.value());
        let verifies = compat::number(crate::module_parameters::verify.value()) != 0;
        let space = Arc::pin_init(SharedSpace::new(), GFP_KERNEL)?;
        Arc::pin_init(
            try_pin_init!(Self {
                queues,
                info,
                limits,
                reach,
                bar,
                observer,
                inline_bytes: inline_bytes as usize,
                verifies,
                patience: Patience::new(compat::number(crate::module_parameters::poll_us.value())),
                space,
            }? Error),
            GFP_KERNEL,
        )
    }

    pub(crate) fn memory_size(&self) -> u64 {
        self.info.memory_size
    }

    pub(crate) fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// What is observed of the device.
    pub(crate) fn device_observer(&self) -> &Arc<DeviceObserver> {
        &self.observer.device
    }

    /// What is observed of the driver's own requests.
    pub(crate) fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    pub(crate) fn space(&self) -> &Arc<SharedSpace> {
        &self.space
    }

    /// Whether the device answers any request now. May sleep.
    pub(crate) fn answers(&self) -> bool {
        let returned = || self.queues.iter().map(|queue| queue.returned());
        let before = returned().fold(0, usize::wrapping_add);
        let answered = self.queues.iter().any(|queue| {
            let nop = RequestHeader::new(Operation::Nop, 0, 0, 0);
            match submit_one(queue, nop, self.observer.clone(), WhenFull::Fail) {
                Ok(transfer) => transfer.wait_milliseconds(SIGN_OF_LIFE_MS).is_ok(),
                Err(_) => {
                    // There is no room for a question, but the device may be at work all the same.
                    delay::sleep_ms(SIGN_OF_LIFE_MS);
                    false
                }
            }
        });
        answered || returned().fold(0, usize::wrapping_add) != before
    }

    /// Lets no request in any more, and takes device memory out of every mapping. May sleep.
    pub(crate) fn give_up(&self) {
        for queue in &*self.queues {
            queue.close();
        }
        self.space.close();
        if let Some(bar) = &self.bar {
            bar.close();
        }
    }

    /// The queue of this CPU, so that CPUs share as few as they can. The interrupts of a queue go to
    /// the CPUs that it belongs to.
    pub(crate) fn queue(&self) -> Result<&Queue> {
        // The task may move to another CPU at once, which costs locality and nothing else.
        let count = self.queues.len().max(1);
        self.queues
            .get(cpu::current_number() % count)
            .map(|queue| &**queue)
            .ok_or(ENODEV)
    }

    /// Upper bound for the pages of `buffers`, if they are certain to fit into one request.
    pub(crate) fn pages_of_one(&self, buffers: &Buffers<'_>) -> Option<usize> {
        let pages = buffers.page_bound(self.limits.entries + 1);
        (pages <= self.limits.entries && buffers.len() <= self.limits.bytes).then_some(pages)
    }

    /// Whether there is room now for all requests that `buffers` may need, few enough to be submitted
    /// by a caller that may not wait. Others may take the room first: then the caller waits after all,
    /// rather than stop half-way.
    pub(crate) fn has_room_for(&self, buffers: &Buffers<'_>) -> bool {
        let entries = self.limits.entries;
        let pages = buffers.page_bound(MAX_NOWAIT_PARTS * entries + 1);
        let parts = pages
            .div_ceil(entries)
            .max(buffers.len().div_ceil(self.limits.bytes));
        parts <= MAX_NOWAIT_PARTS && self.queue().is_ok_and(|queue| queue.has_room_for(parts))
    }

    /// What moves `buffers`, and whether its checksum is to be verified: with the parameter `verify`, and
    /// a device that has it.
    pub(crate) fn job(&self, place: Place, buffers: &Buffers<'_>) -> (Job, bool) {
        let (plain, checked) = match place.direction {
            Direction::Write => (Operation::Write, Operation::WriteCrc32c),
            _ => (Operation::Read, Operation::ReadCrc32c),
        };
        let verified = self.verifies && self.info.operations & checked.bit() != 0;
        let job = Job {
            operation: if verified { checked } else { plain },
            offset: place.position,
            length: buffers.len() as u64,
            argument: 0,
        };
        (job, verified)
    }

    /// Limits of the parts of a job: half of the entries for one that has data on both sides, which
    /// have to be equally long, so that its parts are short enough for any pages to fit.
    fn part_limits(&self, outgoing: &Memory<'_>, incoming: &Memory<'_>, pipelined: bool) -> Limits {
        let entries = if pipelined {
            self.limits.entries.min(PIPELINED_ENTRIES)
        } else {
            self.limits.entries
        };
        if outgoing.is_some() && incoming.is_some() {
            self.limits.for_any_pages(entries / 2)
        } else {
            Limits {
                entries,
                ..self.limits
            }
        }
    }

    /// Submits requests for all of `job`.
    ///
    /// When something fails on the way, what was submitted by then is all that the transfer does. When
    /// nothing was, the error is returned, and the transfer completes nothing.
    ///
    /// Looking, if the caller is to look, has begun with the last request: until the pages of all are
    /// there, which takes as long as page faults take, others need the interrupts.
    pub(crate) fn submit<'a>(
        &self,
        queue: &'a Queue,
        transfer: &'a ARef<Transfer>,
        job: &'a Job,
        mut outgoing: Memory<'_>,
        mut incoming: Memory<'_>,
        submit: Submit,
    ) -> Result<Option<Looking<'a>>> {
        let limits = self.part_limits(&outgoing, &incoming, submit.pipelined);
        let length = job.length as usize;
        let parts = Parts {
            queue,
            transfer,
            job,
            limits,
            submit,
        };
        let submitted = if length > 0 {
            self.submit_parts(&parts, &mut outgoing, &mut incoming)
        } else {
            self.submit_part(&parts, 0, &mut Memory::None, &mut Memory::None)
        };
        match submitted {
            Ok((done, looking)) => {
                if done < length {
                    queue.kick();
                }
                transfer.submitted(done);
                Ok(looking)
            }
            Err(error) => {
                transfer.cancel();
                Err(error)
            }
        }
    }

    /// Submits all parts of a job that has bytes, as far as nothing fails; returns how many that is.
    fn submit_parts<'a>(
        &self,
        parts: &Parts<'a>,
        outgoing: &mut Memory<'_>,
        incoming: &mut Memory<'_>,
    ) -> Result<(usize, Option<Looking<'a>>)> {
        let length = parts.job.length as usize;
        let mut parts = *parts;
        let mut done = 0;
        let mut looking = None;
        while done < length {
            match self.submit_part(&parts, done, outgoing, incoming) {
                Ok((0, _)) => break,
                Ok((bytes, begun)) => {
                    done += bytes;
                    looking = begun;
                    // Who may not wait has looked for room before.
                    parts.submit.when_full = WhenFull::Wait;
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok((done, looking))
    }

    /// Whether a job with so many bytes, of one piece of data on each side that has any, is certain to fit
    /// into one request.
    pub(crate) fn fits(&self, length: usize, outgoing: &Memory<'_>, incoming: &Memory<'_>) -> bool {
        let limits = self.part_limits(outgoing, incoming, false);
        let has_data = outgoing.is_some() || incoming.is_some();
        length <= limits.bytes && !(has_data && length.div_ceil(PAGE_SIZE) >= limits.entries)
    }

    /// Submits the part of a job that begins at byte `done`, and returns how many bytes that is. With the
    /// last part looking begins, if it is to.
    fn submit_part<'a>(
        &self,
        parts: &Parts<'a>,
        done: usize,
        outgoing: &mut Memory<'_>,
        incoming: &mut Memory<'_>,
    ) -> Result<(usize, Option<Looking<'a>>)> {
        let Parts {
            queue,
            transfer,
            job,
            mut limits,
            submit,
        } = *parts;
        limits.bytes = limits.bytes.min(job.length as usize - done);
        let reply = Reply::Part(transfer.clone(), done);
        let observer = transfer.observer().clone();
        let mut request =
            SlabBox::<Request>::create(reply, observer, submit.polled, submit.verified)?;
        let (read, written) = request.data();
        outgoing.take(read, done, limits)?;
        if outgoing.is_some() && incoming.is_some() {
            limits.bytes = read.bytes();
        }
        incoming.take(written, done, limits)?;
        let bytes = match (outgoing.is_some(), incoming.is_some()) {
            (false, false) => job.length_of_part(done, limits.bytes),
            (true, false) => read.bytes(),
            (false, true) => written.bytes(),
            (true, true) if read.bytes() == written.bytes() => read.bytes(),
            (true, true) => return Err(EFAULT),
        };
        read.bring_within(self.reach, true)?;
        written.bring_within(self.reach, false)?;
        request.prepare(RequestHeader::new(
            job.operation,
            job.offset_at(done),
            bytes as u64,
            job.argument_at(done),
        ));
        let last = done + bytes >= job.length as usize;
        let kick = submit.pipelined || last;
        let looking = submit
            .looks
            .filter(|_| last)
            .and_then(|eager| self.patience.begin(queue, eager));
        let submitted = self.hand_over(queue, request, submit, kick);
        if submitted.is_err() {
            outgoing.revert(bytes);
            incoming.revert(bytes);
        }
        submitted.map(|()| (bytes, looking))
    }

    /// Submits one request for all of `job`, which reads or writes `buffers` and has room in one
    /// ([`Self::pages_of_one`]): the answer of the device goes right to the caller.
    pub(crate) fn submit_whole(
        &self,
        caller: AsyncIocb,
        observer: &Arc<Observer>,
        job: &Job,
        buffers: &mut Buffers<'_>,
        pages: usize,
        submit: Submit,
    ) -> Result {
        let queue = self.queue()?;
        let mut request = SlabBox::<Request>::create(
            Reply::Caller(caller),
            observer.clone(),
            submit.polled,
            submit.verified,
        )?;
        let (read, written) = request.data();
        let outgoing = job.is_write();
        let held = if outgoing { read } else { written };
        held.take(buffers, self.limits.bytes, pages, self.limits.entry)?;
        held.bring_within(self.reach, outgoing)?;
        let bytes = held.bytes();
        request.prepare(RequestHeader::new(
            job.operation,
            job.offset,
            bytes as u64,
            0,
        ));
        self.hand_over(queue, request, submit, true)
            .inspect_err(|_| buffers.revert(bytes))
    }

    /// Hands a request to the device; with `kick` it hears of it now, or when the submission ends that
    /// the request is one of.
    fn hand_over(
        &self,
        queue: &Queue,
        request: SlabBox<Request>,
        submit: Submit,
        kick: bool,
    ) -> Result {
        let kick = kick && !(submit.batched && plug::defer_kick(&self.queues, queue));
        queue
            .submit(request, submit.when_full, kick)
            .map_err(|(error, _)| error)
    }

    /// Makes durable what was completed before. A signal ends the wait with `EINTR`.
    pub(crate) fn flush(&self, observer: Arc<Observer>) -> Result {
        if self.info.operations & Operation::Flush.bit() == 0 {
            return Err(compat::not_supported());
        }
        let header = RequestHeader::new(Operation::Flush, 0, 0, 0);
        submit_one(self.queue()?, header, observer, WhenFull::Wait)?
            .wait_interruptible()
            .map(|_| ())
    }

    /// Copies a small transfer with the CPU, through the BAR, if the parameter `inline_bytes` says so;
    /// `None` if it does not, or there is no BAR. May sleep.
    pub(crate) fn copy_inline(
        &self,
        direction: Direction,
        position: u64,
        buffers: &mut Buffers<'_>,
    ) -> Option<Result<usize>> {
        if buffers.len() > self.inline_bytes {
            return None;
        }
        let bar = self
            .bar
            .as_ref()
            .filter(|bar| position + buffers.len() as u64 <= bar.size())?;
        Some(bar.io_memory().and_then(|memory| {
            let mut done = 0;
            let mut step = [0; INLINE_STEP];
            while buffers.len() > 0 {
                let step = &mut step[..buffers.len().min(INLINE_STEP)];
                let at = position + done as u64;
                let copied = match direction {
                    Direction::Write => {
                        let copied = buffers.copy_from(step);
                        memory.write(at, &step[..copied])?;
                        copied
                    }
                    _ => {
                        memory.read(at, step)?;
                        buffers.copy_to(step)
                    }
                };
                done += copied;
                if copied < step.len() {
                    return if done > 0 { Ok(done) } else { Err(EFAULT) };
                }
            }
            Ok(done)
        }))
    }

    /// Completes what the device has done; returns how many requests that were.
    pub(crate) fn look(&self) -> usize {
        self.queues.iter().map(|queue| queue.look()).sum()
    }

    /// Looks for the end of `transfer`, of so many `bytes`, of a task that waits: until it comes or a
    /// signal does if the caller wants that (`eager`), otherwise for as long as it has paid lately.
    pub(crate) fn look_for(
        &self,
        transfer: &Transfer,
        bytes: u64,
        eager: bool,
        looking: Looking<'_>,
        observer: &Observer,
    ) {
        let found = self
            .patience
            .look_for(transfer, bytes, eager, looking, || self.look());
        observer.count(|counters| counters.polled.add(found));
    }

    /// What `poll` wants to know.
    pub(crate) fn poll(&self, poll: &Poll<'_>) -> Readiness {
        // One for all queues: io_uring waits at two places at the most, and libaio at one.
        if let Some(queue) = self.queues.first() {
            poll.wait_for(queue.pollers());
        }
        let Ok(queue) = self.queue() else {
            return Readiness::Dead;
        };
        if queue.is_closed() {
            Readiness::Dead
        } else if queue.has_room() {
            Readiness::Ready
        } else {
            Readiness::Busy
        }
    }

    /// See [`explain::explain`]. May sleep.
    pub(crate) fn explain(&self, argument: usize) -> Result<isize> {
        explain::explain(argument, self.queue()?, self.reach, self.limits.entry)
    }

    /// Maps device memory into user space; `ENODEV` when the device shows none.
    ///
    /// # Safety
    ///
    /// The file of the mapping has a `T`.
    pub(crate) unsafe fn map<T: Mappable>(&self, mapping: NewMapping<'_>, mode: u32) -> Result {
        let bar = self.bar.as_ref().ok_or(ENODEV)?;
        // SAFETY: The caller vouches for the file.
        self.space
            .while_open(|| unsafe { bar.map::<T>(mapping, mode) })
            .ok_or(ENODEV)?
    }

    /// Maps what a fault asks for, while the device is there.
    pub(crate) fn fault(&self, fault: Fault<'_>) -> FaultResult {
        let Some(bar) = &self.bar else {
            return FaultResult::BUS_ERROR;
        };
        self.space
            .while_open(|| bar.fault(fault))
            .unwrap_or(FaultResult::BUS_ERROR)
    }

    /// Counts a mapping that has come (`true`) or gone.
    pub(crate) fn count_mapping(&self, come: bool) {
        if let Some(bar) = &self.bar {
            bar.count_mapping(come);
        }
    }

    /// Chooses the cache attribute of device memory; `ENODEV` when the device shows none. May sleep.
    pub(crate) fn set_cache(&self, cache: u32) -> Result {
        self.bar.as_ref().ok_or(ENODEV)?.set_cache(cache)
    }
}

/// Submits a request without data.
pub(crate) fn submit_one(
    queue: &Queue,
    header: RequestHeader,
    observer: Arc<Observer>,
    when_full: WhenFull,
) -> Result<ARef<Transfer>> {
    let transfer = Transfer::new(None, observer.clone(), Combine::Only, 0)?;
    let reply = Reply::Part(transfer.clone(), 0);
    let mut request = SlabBox::<Request>::create(reply, observer, false, false)?;
    request.prepare(header);
    queue
        .submit(request, when_full, true)
        .map_err(|(error, _)| error)?;
    transfer.submitted(0);
    Ok(transfer)
}

/// The request queues of a device. They outlive the virtqueues in them.
pub(crate) type Queues = KVec<Pin<KBox<Queue>>>;
