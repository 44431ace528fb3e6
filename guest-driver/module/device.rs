// SPDX-License-Identifier: GPL-2.0

//! A vdma device: bound, driven, and let go.

use crate::{
    bar::Bar,
    bounce::Reach,
    chardev,
    chardev::{Poll, Readiness},
    command::{Job, Limits, Memory},
    compat,
    counters::{Counters, Direction},
    debugfs::Directory,
    explain,
    looking::Patience,
    observe::{DeviceObserver, Observers},
    pages::{Buffers, HeldPages},
    plug,
    protocol::{
        Config, DeviceInfo, Operation, RequestHeader, CONFIG_MAGIC, CONFIG_VERSION, FEATURE_BAR,
        SHMEM_ID_DEVICE_MEMORY, STATE_BAR_MAPPED,
    },
    queue::{Health, Looking, Queue, WhenFull, PERIODS_PER_TIMEOUT},
    request::{Draft, Request},
    slab::SlabBox,
    transfer::{Combine, Transfer},
    virtio,
    vma::{Fault, FaultResult, Mappable, NewMapping, SharedSpace},
    watchdog::{Leash, Ward, Watchdog},
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
};

/// Descriptors of a request that are not data: the header and the response.
const FIXED_SEGMENTS: u32 = 2;

/// Milliseconds that a device, whose requests are late, has to answer one that does nothing.
const SIGN_OF_LIFE_MS: u32 = 2_000;

/// Milliseconds that the device has for its first answer.
const FIRST_ANSWER_MS: u32 = 10_000;

/// Which `/dev/vdmaN` exist: one bit for each.
static NUMBERS: Atomic<u64> = Atomic::new(0);

/// The `N` of a `/dev/vdmaN`, given back when dropped.
struct Number(u32);

impl Number {
    /// The lowest free one; `ENOSPC` when 64 devices exist.
    fn allocate() -> Result<Self> {
        let mut taken = NUMBERS.load(Relaxed);
        loop {
            let number = taken.trailing_ones();
            if number == u64::BITS {
                return Err(ENOSPC);
            }
            match NUMBERS.cmpxchg(taken, taken | 1 << number, Full) {
                Ok(_) => return Ok(Self(number)),
                Err(now) => taken = now,
            }
        }
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        let mut taken = NUMBERS.load(Relaxed);
        while let Err(now) = NUMBERS.cmpxchg(taken, taken & !(1 << self.0), Full) {
            taken = now;
        }
    }
}

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
    observer: Arc<DeviceObserver>,
    patience: Patience,
    #[pin]
    space: SharedSpace,
}

impl Vdma {
    pub(crate) fn memory_size(&self) -> u64 {
        self.info.memory_size
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    pub(crate) fn observer(&self) -> &Arc<DeviceObserver> {
        &self.observer
    }

    pub(crate) fn space(&self) -> &SharedSpace {
        &self.space
    }

    fn observers(&self) -> Observers {
        Observers {
            device: self.observer.clone(),
            file: None,
        }
    }

    /// Whether the device answers any request now. May sleep.
    fn answers(&self) -> bool {
        let returned = || self.queues.iter().map(|queue| queue.returned());
        let before = returned().fold(0, usize::wrapping_add);
        let answered = self.queues.iter().any(|queue| {
            let nop = RequestHeader::new(Operation::Nop, 0, 0, 0);
            match submit_one(queue, nop, self.observers(), WhenFull::Fail) {
                Ok(transfer) => transfer.wait_milliseconds(SIGN_OF_LIFE_MS).is_ok(),
                Err(_) => {
                    // There is no room for a question, but the device may be at work all the same.
                    // SAFETY: The watchdog may sleep.
                    unsafe { bindings::msleep(SIGN_OF_LIFE_MS) };
                    false
                }
            }
        });
        answered || returned().fold(0, usize::wrapping_add) != before
    }

    /// Lets no request in any more, and takes device memory out of every mapping. May sleep.
    fn give_up(&self) {
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
        // SAFETY: No precondition. The task may move to another CPU at once, which costs locality
        // and nothing else.
        let cpu = unsafe { bindings::raw_smp_processor_id() } as usize;
        let count = self.queues.len().max(1);
        self.queues
            .get(cpu % count)
            .map(|queue| &**queue)
            .ok_or(ENODEV)
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
        parts <= MAX_NOWAIT_PARTS
            && (parts == 1 || self.queue().is_ok_and(|queue| queue.has_room_for(parts)))
    }

    /// The operation that moves data, and whether its checksum is to be verified: with the parameter
    /// `verify`, and a device that has it.
    pub(crate) fn verifying(&self, direction: Direction) -> (Operation, bool) {
        let (plain, checked) = match direction {
            Direction::Write => (Operation::Write, Operation::WriteCrc32c),
            _ => (Operation::Read, Operation::ReadCrc32c),
        };
        let wanted = compat::number(crate::module_parameters::verify.value()) != 0;
        if wanted && self.info.operations & checked.bit() != 0 {
            (checked, true)
        } else {
            (plain, false)
        }
    }

    /// Limits of the parts of a job: half of the entries for one that has data on both sides, which
    /// have to be equally long, so that its parts are short enough for any pages to fit.
    fn part_limits(&self, outgoing: &Memory<'_>, incoming: &Memory<'_>) -> Limits {
        if !(outgoing.is_some() && incoming.is_some()) {
            return self.limits;
        }
        self.limits.for_any_pages(self.limits.entries / 2)
    }

    /// Submits requests for all of `job`.
    ///
    /// When something fails on the way, what was submitted by then is all that the transfer does. When
    /// nothing was, the error is returned, and the transfer completes nothing.
    pub(crate) fn submit(
        &self,
        queue: &Queue,
        transfer: &ARef<Transfer>,
        job: &Job,
        mut outgoing: Memory<'_>,
        mut incoming: Memory<'_>,
        submit: Submit,
    ) -> Result {
        let limits = self.part_limits(&outgoing, &incoming);
        let length = job.length as usize;
        let has_data = (outgoing.is_some() || incoming.is_some()) && length > 0;
        let parts = Parts {
            queue,
            transfer,
            job,
            limits,
            submit,
        };
        let submitted = if has_data {
            self.submit_parts(&parts, &mut outgoing, &mut incoming)
        } else {
            self.submit_part(&parts, 0, &mut Memory::None, &mut Memory::None)
        };
        match submitted {
            Ok(done) => {
                if done < length {
                    queue.kick();
                }
                transfer.submitted(done);
                Ok(())
            }
            Err(error) => {
                transfer.cancel();
                Err(error)
            }
        }
    }

    /// Submits all parts of a job with data, as far as nothing fails; returns how many bytes that is.
    fn submit_parts(
        &self,
        parts: &Parts<'_>,
        outgoing: &mut Memory<'_>,
        incoming: &mut Memory<'_>,
    ) -> Result<usize> {
        let length = parts.job.length as usize;
        let mut parts = *parts;
        let mut done = 0;
        while done < length {
            match self.submit_part(&parts, done, outgoing, incoming) {
                Ok(0) => break,
                Ok(bytes) => {
                    done += bytes;
                    // Who may not wait has looked for room before.
                    parts.submit.when_full = WhenFull::Wait;
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Whether a job with so many bytes of one piece of data on each side is certain to fit into one
    /// request.
    pub(crate) fn fits(&self, length: usize, outgoing: &Memory<'_>, incoming: &Memory<'_>) -> bool {
        let limits = self.part_limits(outgoing, incoming);
        length <= limits.bytes && length.div_ceil(PAGE_SIZE) < limits.entries
    }

    /// Submits the part of a job that begins at byte `done`, and returns how many bytes that is.
    fn submit_part(
        &self,
        parts: &Parts<'_>,
        done: usize,
        outgoing: &mut Memory<'_>,
        incoming: &mut Memory<'_>,
    ) -> Result<usize> {
        let Parts {
            queue,
            transfer,
            job,
            mut limits,
            submit,
        } = *parts;
        limits.bytes = limits.bytes.min(job.length as usize - done);
        let mut read = outgoing.take(done, limits)?;
        if outgoing.is_some() && incoming.is_some() {
            limits.bytes = read.bytes();
        }
        let mut written = incoming.take(done, limits)?;
        let bytes = match (outgoing.is_some(), incoming.is_some()) {
            (false, false) => job.length as usize,
            (true, false) => read.bytes(),
            (false, true) => written.bytes(),
            (true, true) if read.bytes() == written.bytes() => read.bytes(),
            (true, true) => return Err(EFAULT),
        };
        read.bring_within(self.reach, true)?;
        written.bring_within(self.reach, false)?;
        let header = RequestHeader::new(
            job.operation,
            job.offset_at(done),
            bytes as u64,
            job.argument_at(done),
        );
        let submitted = SlabBox::<Request>::create(Draft {
            header,
            outgoing: read,
            incoming: written,
            transfer: transfer.clone(),
            position: done,
            polled: submit.polled,
            verified: submit.verified,
        })
        .and_then(|request| {
            let last = done + bytes >= job.length as usize
                && !(submit.batched && plug::defer_kick(&self.queues, queue));
            queue
                .submit(request, submit.when_full, last)
                .map_err(|(error, _)| error)
        });
        if submitted.is_err() {
            outgoing.revert(bytes);
            incoming.revert(bytes);
        }
        submitted.map(|()| bytes)
    }

    /// Makes durable what was completed before. A signal ends the wait with `EINTR`.
    pub(crate) fn flush(&self, observers: Observers) -> Result {
        if self.info.operations & Operation::Flush.bit() == 0 {
            return Err(compat::not_supported());
        }
        let header = RequestHeader::new(Operation::Flush, 0, 0, 0);
        submit_one(self.queue()?, header, observers, WhenFull::Wait)?
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
        if buffers.len() > compat::number(crate::module_parameters::inline_bytes.value()) as usize {
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

    /// Begins to look for what will be submitted to `queue`, if that may pay or the caller wants it
    /// (`eager`).
    pub(crate) fn begin_looking<'a>(&self, queue: &'a Queue, eager: bool) -> Option<Looking<'a>> {
        self.patience.begin(queue, eager)
    }

    /// Looks for the end of `transfer`, of a task that waits: until it comes or a signal does if the
    /// caller wants that (`eager`), otherwise for as long as it has paid lately.
    pub(crate) fn look_for(
        &self,
        transfer: &Transfer,
        eager: bool,
        looking: Looking<'_>,
        file: &Counters,
    ) {
        let found = self
            .patience
            .look_for(transfer, eager, looking, || self.look());
        file.polled.add(found);
        self.observer.counters.polled.add(found);
    }

    /// What `poll` wants to know.
    pub(crate) fn poll(&self, poll: &Poll<'_>) -> Readiness {
        for queue in &*self.queues {
            poll.wait_for(queue.room());
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
fn submit_one(
    queue: &Queue,
    header: RequestHeader,
    observers: Observers,
    when_full: WhenFull,
) -> Result<ARef<Transfer>> {
    let transfer = Transfer::new(None, observers, Combine::Only, 0)?;
    let request = SlabBox::<Request>::create(Draft {
        header,
        outgoing: HeldPages::none()?,
        incoming: HeldPages::none()?,
        transfer: transfer.clone(),
        position: 0,
        polled: false,
        verified: false,
    })?;
    queue
        .submit(request, when_full, true)
        .map_err(|(error, _)| error)?;
    transfer.submitted(0);
    Ok(transfer)
}

/// The request queues of a device. They outlive the virtqueues in them.
pub(crate) type Queues = KVec<Pin<KBox<Queue>>>;

/// Gives the queues their virtqueues, starts the device, and waits for its first answer. May sleep.
///
/// On failure the device may have to be stopped.
fn start(device: &virtio::Device, queues: &Queues, observer: &Arc<DeviceObserver>) -> Result {
    let virtqueues = device.create_queues::<SlabBox<Request>, Queue>(queues.len())?;
    let count = virtqueues.len();
    for (queue, mut virtqueue) in queues.iter().zip(virtqueues) {
        // SAFETY: The queue is boxed and pinned, and whoever drops it has called `stop` before.
        unsafe { device.attach_handler(&mut virtqueue, &**queue) };
        virtqueue.spread_interrupts(count);
        queue.open(virtqueue);
    }
    device.set_ready();
    // The device answers only when device memory is mapped, if it can be: see the specification.
    let nop = RequestHeader::new(Operation::Nop, 0, 0, 0);
    let queue = queues.first().ok_or(ENODEV)?;
    let observers = Observers {
        device: observer.clone(),
        file: None,
    };
    submit_one(queue, nop, observers, WhenFull::Fail)?
        .wait_milliseconds(FIRST_ANSWER_MS)
        .map(|_| ())
}

/// Resets the device, completes what is in its queues, with `error` what it has not used, and deletes
/// the virtqueues. May sleep.
///
/// To be called when the queues let nothing more in.
fn stop(device: &virtio::Device, queues: &Queues, error: Error) {
    device.reset();
    for queue in queues {
        queue.drain(error);
    }
    // SAFETY: The device has been reset, and draining has taken the virtqueues out of the queues.
    unsafe { device.delete_queues() };
}

/// Stops the device for good when dropped, unless it is dismissed.
struct StopOnError<'a> {
    device: &'a virtio::Device,
    queues: Arc<Queues>,
    dismissed: bool,
}

impl Drop for StopOnError<'_> {
    fn drop(&mut self) {
        if !self.dismissed {
            for queue in &*self.queues {
                queue.close();
            }
            stop(self.device, &self.queues, ENODEV);
        }
    }
}

/// Restarts a device that has stopped answering.
struct Recovery {
    device: NonNull<virtio::Device>,
    vdma: Arc<Vdma>,
}

// SAFETY: The device may be used from any task; that it is still there is up to the owner.
unsafe impl Send for Recovery {}
// SAFETY: As above.
unsafe impl Sync for Recovery {}

impl Ward for Recovery {
    fn check(&self) {
        let mut late = false;
        let mut broken = false;
        for queue in &*self.vdma.queues {
            match queue.tick() {
                Health::Good => {}
                // Nobody may have looked: it is late only if the device has not done it.
                Health::Late => late |= queue.reap() == 0 || queue.is_late(),
                Health::Broken => broken = true,
            }
        }
        if !late && !broken {
            return;
        }
        // SAFETY: The leash of the watchdog is dropped before the device goes.
        let device = unsafe { self.device.as_ref() };
        // Removal, suspend and others who restart the device hold the lock; whatever they do comes
        // before another look at the queues.
        let Some(_lock) = device.try_lock() else {
            return;
        };
        let dev = device.as_device();
        let what = if broken {
            "the ring is broken"
        } else {
            "a request was not answered in time"
        };
        // A broken ring is a sign of life. Otherwise the device has to give one: to start a device
        // whose back end is gone makes QEMU abort (11.1), and the guest with it.
        if !broken && !self.vdma.answers() {
            dev_err!(
                dev,
                "{}, and the device does not answer any more; given up. Plug it anew, or bind the driver again\n",
                what
            );
            self.vdma.give_up();
            stop(device, &self.vdma.queues, ENODEV);
            return;
        }
        dev_warn!(dev, "{}; resetting the device\n", what);
        match device.restart() {
            Ok(()) => dev_info!(dev, "the device is back\n"),
            Err(error) => dev_err!(
                dev,
                "the device does not come back: {:?}; given up\n",
                error
            ),
        }
    }
}

/// A device that the driver is bound to. The leash goes first: nothing is restarted any more.
pub(crate) struct Bound {
    leash: Option<Leash>,
    node: Option<Pin<KBox<chardev::Registration<Vdma>>>>,
    /// Goes before the counters that it shows.
    _debugfs: Directory,
    vdma: Arc<Vdma>,
    number: Number,
}

/// The driver on the virtio bus.
pub(crate) struct Driver;

impl virtio::Driver for Driver {
    type Data = KBox<Bound>;

    const FEATURES: &'static [u32] = &[FEATURE_BAR];

    fn probe(device: &virtio::Device) -> Result<KBox<Bound>> {
        let dev = device.as_device();
        let config = read_config(device);
        if config.magic.get() != CONFIG_MAGIC || config.version.get() != CONFIG_VERSION {
            dev_info!(
                dev,
                "not a vdma device of version {}: magic {:#x}, version {}; left alone\n",
                CONFIG_VERSION,
                config.magic.get(),
                config.version.get()
            );
            return Err(ENODEV);
        }
        if let Err(what) = check_config(&config) {
            dev_err!(dev, "configuration space: {}\n", what);
            return Err(EINVAL);
        }

        let timeout_ms = compat::number(crate::module_parameters::timeout_ms.value());
        let watchdog = Watchdog::new(timeout_ms.div_ceil(PERIODS_PER_TIMEOUT))?;
        let mut queues = Queues::with_capacity(config.num_queues.get().into(), GFP_KERNEL)?;
        for _ in 0..config.num_queues.get() {
            let number = queues.len() as u32;
            let queue = KBox::pin_init(Queue::new(number, watchdog.clone()), GFP_KERNEL)?;
            queues.push(queue, GFP_KERNEL)?;
        }
        let queues = Arc::new(queues, GFP_KERNEL)?;
        let number = Number::allocate()?;
        let observer = DeviceObserver::new(number.0)?;
        let (reach, dma_bits) = dma_reach(device)?;
        let mut on_error = StopOnError {
            device,
            queues: queues.clone(),
            dismissed: false,
        };
        start(device, &queues, &observer).inspect_err(|error| {
            dev_err!(
                dev,
                "no answer to the first request: {:?}; is the backend alive?\n",
                error
            );
        })?;
        let queue = queues.first().ok_or(ENODEV)?;
        let config = read_config(device);

        let queue_size = queue
            .with_virtqueue(|virtqueue| virtqueue.size())
            .ok_or(ENODEV)?;
        let mapped = config.state.get() & STATE_BAR_MAPPED != 0;
        let bar = device
            .shared_memory(SHMEM_ID_DEVICE_MEMORY)
            .filter(|_| mapped)
            .map(|region| {
                Bar::new(region, config.memory_size.get())
                    .and_then(|bar| Ok(KBox::pin_init(bar, GFP_KERNEL)?))
            })
            .transpose()
            .unwrap_or_else(|error| {
                dev_warn!(dev, "the BAR cannot be mapped: {:?}\n", error);
                None
            });
        let segments = config
            .max_segments
            .get()
            .min(queue_size)
            .saturating_sub(FIXED_SEGMENTS);
        let info = DeviceInfo {
            features: device.features(),
            memory_size: config.memory_size.get(),
            operations: config.operations.get(),
            bar_address: bar.as_ref().map_or(0, |bar| bar.address()),
            bar_size: bar.as_ref().map_or(0, |bar| bar.size()),
            num_queues: queues.len() as u32,
            queue_size,
            max_segments: segments.max(1),
            max_transfer: config.max_transfer.get() & !(kernel::page::PAGE_SIZE as u32 - 1),
            state: config.state.get(),
            dma_bits,
        };
        let has_bar = bar.is_some();
        let all = Limits {
            bytes: info.max_transfer as usize,
            entries: info.max_segments as usize,
            entry: device.max_segment(),
        };
        // Bounced pages are entries of their own: an entry of `n` pages has at least `n - 2` whole ones,
        // so that a quarter of the entries, and as many whole pages, become fewer than all.
        let limits = if dma_bits < u64::BITS {
            all.for_any_pages(all.entries / 4)
        } else {
            all
        };
        let vdma = Arc::pin_init(
            try_pin_init!(Vdma {
                queues: queues.clone(),
                info,
                limits,
                reach,
                bar,
                observer,
                patience: Patience::new(compat::number(crate::module_parameters::poll_us.value())),
                space <- SharedSpace::new(),
            }? Error),
            GFP_KERNEL,
        )?;
        let mut bound = Bound::new(device, vdma.clone(), number)?;
        let recovery = Recovery {
            device: device.into(),
            vdma,
        };
        bound.leash = Some(watchdog.watch(Arc::new(recovery, GFP_KERNEL)?));
        on_error.dismissed = true;
        dev_info!(
            dev,
            "vdma{}: {} MiB of device memory, {} queue(s) of {}, {}\n",
            bound.number.0,
            info.memory_size >> 20,
            info.num_queues,
            info.queue_size,
            if has_bar {
                "mapped in a BAR"
            } else {
                "no BAR: mmap is not available"
            }
        );
        Ok(bound)
    }

    fn quiesce(device: &virtio::Device, bound: &Bound) {
        for queue in &*bound.vdma.queues {
            queue.pause();
        }
        stop(device, &bound.vdma.queues, EIO);
    }

    fn resume(device: &virtio::Device, bound: &Bound) -> Result {
        start(device, &bound.vdma.queues, &bound.vdma.observer).inspect_err(|_| {
            bound.vdma.give_up();
            stop(device, &bound.vdma.queues, ENODEV);
        })
    }

    fn remove(device: &virtio::Device, mut bound: KBox<Bound>) {
        // No restart any more, no new files, no new requests, no access through mappings; what is
        // with the device comes back when it is reset.
        bound.leash = None;
        bound.node = None;
        bound.vdma.give_up();
        stop(device, &bound.vdma.queues, ENODEV);
    }
}

impl Bound {
    fn new(device: &virtio::Device, vdma: Arc<Vdma>, number: Number) -> Result<KBox<Self>> {
        let name = CString::try_from_fmt(fmt!("vdma{}", number.0))?;
        let parent = device.as_device_ptr();
        // SAFETY: The node is removed in `remove`, while the device is still there; the operations
        // for `Vdma` are installed when the module is loaded.
        let node = unsafe { chardev::Registration::new(name, vdma.clone(), parent) };
        let node = KBox::pin_init(node, GFP_KERNEL)?;
        let debugfs = Directory::new(vdma.observer.clone(), vdma.queues.clone())?;
        let bound = Self {
            leash: None,
            node: Some(node),
            _debugfs: debugfs,
            vdma,
            number,
        };
        Ok(KBox::new(bound, GFP_KERNEL)?)
    }
}

/// What the device can reach, and in how many bits: the parameter `dma_bits`, up to what the transport
/// can do. Where the device uses the DMA API, that hears of it.
fn dma_reach(device: &virtio::Device) -> Result<(Reach, u32)> {
    let wanted = compat::number(crate::module_parameters::dma_bits.value());
    let Some(reach) = Reach::of_bits(wanted) else {
        dev_err!(
            device.as_device(),
            "dma_bits is {}, and has to be from 32 to 64\n",
            wanted
        );
        return Err(EINVAL);
    };
    if device.uses_dma_api() {
        device.set_dma_bits(wanted)?;
    }
    Ok((reach, wanted.min(device.dma_bits())))
}

fn read_config(device: &virtio::Device) -> Config {
    Config::from_bytes(&device.read_config())
}

/// Refuses values that the rest of the driver could not live with.
fn check_config(config: &Config) -> Result<(), &'static str> {
    let page = kernel::page::PAGE_SIZE as u64;
    let size = config.memory_size.get();
    if size == 0 || size % page != 0 || size > i64::MAX as u64 {
        return Err("memory_size is not a positive multiple of the page size");
    }
    if !(1..=16).contains(&config.num_queues.get()) {
        return Err("num_queues is not between 1 and 16");
    }
    if config.max_segments.get() <= FIXED_SEGMENTS {
        return Err("max_segments leaves no room for data");
    }
    if u64::from(config.max_transfer.get()) < page {
        return Err("max_transfer is less than a page");
    }
    let needed = Operation::Nop.bit() | Operation::Read.bit() | Operation::Write.bit();
    if config.operations.get() & needed != needed {
        return Err("NOP, READ or WRITE is missing from operations");
    }
    Ok(())
}
