// SPDX-License-Identifier: GPL-2.0

//! A vdma device: bound, driven, and let go.

use crate::{
    bar::Bar,
    chardev, compat,
    counters::{Counters, Direction},
    pages::{Buffers, HeldPages},
    protocol::{
        Config, DeviceInfo, Operation, RequestHeader, CONFIG_MAGIC, CONFIG_VERSION, FEATURE_BAR,
        SHMEM_ID_DEVICE_MEMORY, STATE_BAR_MAPPED,
    },
    queue::{Health, Queue, WhenFull, PERIODS_PER_TIMEOUT},
    request::Request,
    slab::SlabBox,
    transfer::Transfer,
    virtio,
    vma::{NewMapping, SharedSpace},
    watchdog::{Leash, Ward, Watchdog},
};
use core::ptr::NonNull;
use kernel::{
    bindings,
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

/// A vdma device. Open files keep it; when the device is gone all that is left of it is an answer of
/// `ENODEV`.
#[pin_data]
pub(crate) struct Vdma {
    queues: Arc<Queues>,
    info: DeviceInfo,
    max_segment: usize,
    bar: Option<Bar>,
    counters: Arc<Counters>,
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

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) fn space(&self) -> &SharedSpace {
        &self.space
    }

    /// Whether any queue answers a request now. May sleep.
    fn answers(&self) -> bool {
        self.queues.iter().any(|queue| {
            let nop = RequestHeader::new(Operation::Nop, 0, 0, 0);
            submit_one(queue, nop, None, self.counters.clone(), WhenFull::Fail)
                .and_then(|transfer| transfer.wait_milliseconds(SIGN_OF_LIFE_MS))
                .is_ok()
        })
    }

    /// Lets no request in any more, and takes device memory out of every mapping. May sleep.
    fn give_up(&self) {
        for queue in &*self.queues {
            queue.close();
        }
        self.space.close();
    }

    /// The queue of this CPU, so that CPUs share as few as they can.
    fn queue(&self) -> Result<&Queue> {
        // SAFETY: No precondition. The task may move to another CPU at once, which costs locality
        // and nothing else.
        let cpu = unsafe { bindings::raw_smp_processor_id() } as usize;
        let count = self.queues.len().max(1);
        self.queues.get(cpu % count).map(|queue| &**queue).ok_or(ENODEV)
    }

    /// Whether `buffers` are certain to fit into one request.
    pub(crate) fn fits_one_request(&self, buffers: &Buffers<'_>) -> bool {
        let most = self.info.max_segments as usize;
        buffers.len() <= self.info.max_transfer as usize
            && buffers.page_bound(most + 1) <= most
    }

    /// Submits requests for all of `buffers`, and returns how many bytes that were: fewer than asked
    /// for when something failed on the way, and the error if it failed at the very beginning.
    pub(crate) fn submit_all(
        &self,
        transfer: &ARef<Transfer>,
        direction: Direction,
        position: u64,
        buffers: &mut Buffers<'_>,
        when_full: WhenFull,
    ) -> Result<usize> {
        let mut done = 0;
        while buffers.len() > 0 {
            match self.submit_next(transfer, direction, position, done, buffers, when_full) {
                Ok(bytes) => done += bytes,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn submit_next(
        &self,
        transfer: &ARef<Transfer>,
        direction: Direction,
        position: u64,
        done: usize,
        buffers: &mut Buffers<'_>,
        when_full: WhenFull,
    ) -> Result<usize> {
        let pages = HeldPages::take(
            buffers,
            self.info.max_transfer as usize,
            self.info.max_segments as usize,
            self.max_segment,
        )?;
        let bytes = pages.bytes();
        let operation = match direction {
            Direction::Write => Operation::Write,
            _ => Operation::Read,
        };
        let header = RequestHeader::new(operation, position + done as u64, bytes as u64, 0);
        let submitted = SlabBox::<Request>::create(header, direction, pages, transfer.clone(), done)
            .and_then(|request| {
                self.queue()?.submit(request, when_full).map_err(|(error, _)| error)
            });
        if submitted.is_err() {
            buffers.revert(bytes);
        }
        submitted.map(|()| bytes)
    }

    /// Runs an operation without data, and waits for it. A signal ends the wait with `EINTR`.
    pub(crate) fn run(
        &self,
        operation: Operation,
        offset: u64,
        length: u64,
        argument: u64,
        file: Option<Arc<Counters>>,
    ) -> Result {
        if self.info.operations & operation.bit() == 0 {
            return Err(compat::not_supported());
        }
        let header = RequestHeader::new(operation, offset, length, argument);
        let transfer = submit_one(self.queue()?, header, file, self.counters.clone(), WhenFull::Wait)?;
        transfer.wait_interruptible().map(|_| ())
    }

    /// Maps device memory into user space; `ENODEV` when the device shows none.
    pub(crate) fn map(&self, mapping: NewMapping<'_>) -> Result {
        let bar = self.bar.as_ref().ok_or(ENODEV)?;
        self.space.while_open(|| bar.map(mapping))
    }
}

/// Submits a request without data.
fn submit_one(
    queue: &Queue,
    header: RequestHeader,
    file: Option<Arc<Counters>>,
    device: Arc<Counters>,
    when_full: WhenFull,
) -> Result<ARef<Transfer>> {
    let transfer = Transfer::new(None, file, device)?;
    let request = SlabBox::<Request>::create(
        header,
        Direction::None,
        HeldPages::none()?,
        transfer.clone(),
        0,
    )?;
    queue.submit(request, when_full).map_err(|(error, _)| error)?;
    transfer.submitted(0);
    Ok(transfer)
}

/// The request queues of a device. They outlive the virtqueues in them.
type Queues = KVec<Pin<KBox<Queue>>>;

/// Gives the queues their virtqueues, starts the device, and waits for its first answer. May sleep.
///
/// On failure the device may have to be stopped.
fn start(device: &virtio::Device, queues: &Queues, counters: &Arc<Counters>) -> Result {
    let virtqueues = device.create_queues::<SlabBox<Request>, Queue>(queues.len())?;
    for (queue, mut virtqueue) in queues.iter().zip(virtqueues) {
        // SAFETY: The queue is boxed and pinned, and whoever drops it has called `stop` before.
        unsafe { device.attach_handler(&mut virtqueue, &**queue) };
        queue.open(virtqueue);
    }
    device.set_ready();
    // The device answers only when device memory is mapped, if it can be: see the specification.
    let nop = RequestHeader::new(Operation::Nop, 0, 0, 0);
    let queue = queues.first().ok_or(ENODEV)?;
    submit_one(queue, nop, None, counters.clone(), WhenFull::Fail)?
        .wait_milliseconds(FIRST_ANSWER_MS).map(|_| ())
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
                Health::Late => late = true,
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
        let what = if broken { "the ring is broken" } else { "a request was not answered in time" };
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
            Err(error) => dev_err!(dev, "the device does not come back: {:?}; given up\n", error),
        }
    }
}

/// A device that the driver is bound to. The leash goes first: nothing is restarted any more.
pub(crate) struct Bound {
    leash: Option<Leash>,
    node: Option<Pin<KBox<chardev::Registration<Vdma>>>>,
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

        let timeout_ms = crate::module_parameters::timeout_ms.value();
        let watchdog = Watchdog::new(timeout_ms.div_ceil(PERIODS_PER_TIMEOUT))?;
        let mut queues = Queues::with_capacity(config.num_queues.get().into(), GFP_KERNEL)?;
        for _ in 0..config.num_queues.get() {
            queues.push(KBox::pin_init(Queue::new(watchdog.clone()), GFP_KERNEL)?, GFP_KERNEL)?;
        }
        let queues = Arc::new(queues, GFP_KERNEL)?;
        let counters = Arc::new(Counters::new(), GFP_KERNEL)?;
        let mut on_error = StopOnError { device, queues: queues.clone(), dismissed: false };
        start(device, &queues, &counters).inspect_err(|error| {
            dev_err!(dev, "no answer to the first request: {:?}; is the backend alive?\n", error);
        })?;
        let queue = queues.first().ok_or(ENODEV)?;
        let config = read_config(device);

        let queue_size = queue.with_virtqueue(|virtqueue| virtqueue.size()).ok_or(ENODEV)?;
        let mapped = config.state.get() & STATE_BAR_MAPPED != 0;
        let bar = device
            .shared_memory(SHMEM_ID_DEVICE_MEMORY)
            .filter(|_| mapped)
            .and_then(Bar::new);
        let segments = config.max_segments.get().min(queue_size).saturating_sub(FIXED_SEGMENTS);
        let info = DeviceInfo {
            features: device.features(),
            memory_size: config.memory_size.get(),
            operations: config.operations.get(),
            bar_address: bar.map_or(0, |bar| bar.address()),
            bar_size: bar.map_or(0, |bar| bar.size()),
            num_queues: queues.len() as u32,
            queue_size,
            max_segments: segments.max(1),
            max_transfer: config.max_transfer.get() & !(kernel::page::PAGE_SIZE as u32 - 1),
            state: config.state.get(),
            dma_bits: device.dma_bits(),
        };
        let vdma = Arc::pin_init(
            try_pin_init!(Vdma {
                queues: queues.clone(),
                info,
                max_segment: device.max_segment(),
                bar,
                counters,
                space <- SharedSpace::new(),
            }? Error),
            GFP_KERNEL,
        )?;
        let mut bound = Bound::new(device, vdma.clone())?;
        let recovery = Recovery { device: device.into(), vdma };
        bound.leash = Some(watchdog.watch(Arc::new(recovery, GFP_KERNEL)?));
        on_error.dismissed = true;
        dev_info!(
            dev,
            "vdma{}: {} MiB of device memory, {} queue(s) of {}, {}\n",
            bound.number.0,
            info.memory_size >> 20,
            info.num_queues,
            info.queue_size,
            if bar.is_some() { "mapped in a BAR" } else { "no BAR: mmap is not available" }
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
        start(device, &bound.vdma.queues, &bound.vdma.counters).inspect_err(|_| {
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
    fn new(device: &virtio::Device, vdma: Arc<Vdma>) -> Result<KBox<Self>> {
        let number = Number::allocate()?;
        let name = CString::try_from_fmt(fmt!("vdma{}", number.0))?;
        let parent = device.as_device_ptr();
        // SAFETY: The node is removed in `remove`, while the device is still there; the operations
        // for `Vdma` are installed when the module is loaded.
        let node = unsafe { chardev::Registration::new(name, vdma.clone(), parent) };
        let node = KBox::pin_init(node, GFP_KERNEL)?;
        Ok(KBox::new(Self { leash: None, node: Some(node), vdma, number }, GFP_KERNEL)?)
    }
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
