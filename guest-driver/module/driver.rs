// SPDX-License-Identifier: GPL-2.0

//! The driver on the virtio bus: probe, restart after a time-out, suspend, remove.

use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc, Mutex,
        atomic::{Atomic, Full, Relaxed},
    },
};

use crate::{
    io::{
        device::{Limits, Vdma},
        file::OpenFile,
        queue::{self, EPOCHS_PER_TIMEOUT, Health, Queue, Queues, WhenFull},
        request::Request,
        submit::submit_empty,
    },
    linux::{bounce::Reach, chardev::DeviceNode, compat},
    memory::bar::Bar,
    observe::{DeviceObserver, Observer, debugfs::Directory},
    protocol::{
        CONFIG_MAGIC, CONFIG_VERSION, Config, DeviceInfo, FEATURE_BAR, Operation,
        SHMEM_ID_DEVICE_MEMORY, STATE_BAR_MAPPED,
    },
    virtio::{self, Control, Device, DeviceHandle, LockedDevice},
    watchdog::{Watchdog, WatchdogGuard, WatchdogTarget},
};

/// Descriptors of a request that are not data: the header and the response.
const FIXED_SEGMENTS: u32 = 2;

/// Milliseconds that the device has to complete the first request.
const FIRST_REQUEST_MS: u32 = 10_000;

/// Most queues of a device.
const MAX_QUEUES: u16 = 16;

/// Which `/dev/vdmaN` exist: one bit for each.
static NUMBERS: Atomic<u64> = Atomic::new(0);

/// The `N` of a `/dev/vdmaN`, free again when dropped.
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

/// Gives the queues their virtqueues, starts the device, and waits until it has completed a NOP.
/// May sleep.
///
/// On failure the device may have to be stopped.
fn start(control: &mut Control<'_>, queues: &Queues, observer: &Arc<Observer>) -> Result {
    let virtqueues = control.create_queues::<Request, Queue>(queues)?;
    let count = virtqueues.len();
    for (queue, mut virtqueue) in queues.iter().zip(virtqueues) {
        virtqueue.spread_interrupts(count);
        queue.open(virtqueue);
    }
    control.set_ready();
    // The device completes it only when device memory is mapped, if it can be: see the
    // specification.
    let queue = queues.first().ok_or(ENODEV)?;
    submit_empty(queue, Operation::Nop, observer.clone(), WhenFull::Fail)?
        .wait_milliseconds(FIRST_REQUEST_MS)
        .map(|_| ())
}

/// Resets the device, completes the requests in its queues, those that it has not used with
/// `error`, and deletes the virtqueues. May sleep.
///
/// The queues must be paused or closed.
fn stop(control: &mut Control<'_>, queues: &Queues, error: Error) {
    let stopped = control.stop();
    for queue in queues {
        queue.drain(&stopped, error);
    }
    stopped.delete_queues();
}

/// Stops the device for good when dropped, unless it is dismissed.
struct StopOnError<'a> {
    device: &'a Device<'a>,
    queues: Arc<Queues>,
    dismissed: bool,
}

impl Drop for StopOnError<'_> {
    fn drop(&mut self) {
        if !self.dismissed {
            for queue in &*self.queues {
                queue.close();
            }
            stop(&mut self.device.control(), &self.queues, ENODEV);
        }
    }
}

/// Restarts a device that has stopped completing requests.
struct Recovery {
    device: DeviceHandle,
    vdma: Arc<Vdma>,
}

impl WatchdogTarget for Recovery {
    fn check(&self) {
        let mut is_healthy = true;
        for queue in &**self.vdma.queues() {
            is_healthy &= matches!(queue.advance_epoch(), Health::Good);
        }
        if is_healthy {
            return;
        }
        // Removal, suspend and resets by others hold the locks; the queues are checked again by the
        // next check.
        if let Some(device) = self.device.try_lock() {
            self.recover(&device);
        }
    }
}

impl Recovery {
    /// Restarts the device, or disables it when that is not safe, if it is still unhealthy.
    fn recover(&self, locked: &LockedDevice<'_>) {
        let device = locked.device();
        let dev = device.as_device();
        let health = self.health();
        let problem = match health {
            Health::Good => return,
            Health::Late => "request timed out",
            Health::Broken => "ring is broken",
        };
        // A broken ring is a sign of life. Otherwise the device has to give one: to start a device
        // whose backend is gone makes QEMU abort (11.1), and the guest with it.
        if matches!(health, Health::Late) && !self.vdma.is_alive() {
            dev_err!(
                dev,
                "{} and device does not respond; disabling device; re-plug or rebind it\n",
                problem
            );
            return self.disable(device);
        }
        // The late requests may have completed together with the sign of life.
        if matches!(self.health(), Health::Good) {
            return;
        }
        dev_warn!(dev, "{}; resetting device\n", problem);
        match locked.restart() {
            Ok(()) => dev_info!(dev, "device restarted\n"),
            Err(error) => {
                dev_err!(
                    dev,
                    "restart failed: {:?}; disabling device; re-plug or rebind it\n",
                    error
                );
                self.disable(device);
            }
        }
    }

    fn disable(&self, device: &Device<'_>) {
        self.vdma.mark_dead();
        stop(&mut device.control(), self.vdma.queues(), ENODEV);
    }

    /// Health of the device, once the used requests have been reaped: `Broken` if any queue is,
    /// else `Late` if any queue is.
    fn health(&self) -> Health {
        let mut health = Health::Good;
        for queue in &**self.vdma.queues() {
            queue.reap();
            match queue.health() {
                Health::Good => {}
                Health::Late if matches!(health, Health::Broken) => {}
                worse => health = worse,
            }
        }
        health
    }
}

/// A device that the driver is bound to.
#[pin_data]
pub(crate) struct Bound {
    #[pin]
    active: Mutex<Active>,
    /// Goes before the counters that it shows.
    _debugfs: Directory,
    vdma: Arc<Vdma>,
    number: Number,
}

/// What ends when the device is removed, in this order: nothing is restarted any more, no file
/// opened.
struct Active {
    watchdog: Option<WatchdogGuard>,
    node: Option<Pin<KBox<DeviceNode<OpenFile>>>>,
}

/// The driver on the virtio bus.
pub(crate) struct Driver;

impl virtio::Driver for Driver {
    type Data = Bound;

    const FEATURES: &'static [u32] = &[FEATURE_BAR];

    fn probe(device: &Device<'_>) -> Result<Arc<Bound>> {
        let config = read_config(device)?;
        let timeout_ms = compat::number(crate::module_parameters::timeout_ms.value());
        let watchdog = Watchdog::new(timeout_ms.div_ceil(EPOCHS_PER_TIMEOUT))?;
        let queues = create_queues(config.num_queues.get(), &watchdog)?;
        let number = Number::allocate()?;
        let observer = Observer::new(DeviceObserver::new(number.0)?)?;
        let reach = dma_reach(device)?;
        let mut on_error = StopOnError {
            device,
            queues: queues.clone(),
            dismissed: false,
        };
        start(&mut device.control(), &queues, &observer).inspect_err(|error| {
            dev_err!(
                device.as_device(),
                "first request failed: {:?}; is the backend running?\n",
                error
            );
        })?;
        let vdma = create_vdma(device, queues, reach, observer)?;
        let bound = Bound::new(device, vdma.clone(), number)?;
        let recovery = Recovery {
            device: device.handle(),
            vdma,
        };
        let guard = watchdog.watch(Arc::new(recovery, GFP_KERNEL)?);
        bound.active.lock().watchdog = Some(guard);
        on_error.dismissed = true;
        log_probed(device, &bound);
        Ok(bound)
    }

    fn quiesce(device: &Device<'_>, bound: &Bound) {
        for queue in &**bound.vdma.queues() {
            queue.pause();
        }
        stop(&mut device.control(), bound.vdma.queues(), EIO);
    }

    fn resume(device: &Device<'_>, bound: &Bound) -> Result {
        let mut control = device.control();
        // To start a device that was disabled may end the machine: see `Recovery`. One that is
        // being removed is marked as dead before it is stopped, under the same control.
        if bound.vdma.queues().iter().any(|queue| queue.is_closed()) {
            return Err(ENODEV);
        }
        let started = start(&mut control, bound.vdma.queues(), bound.vdma.observer());
        started.inspect_err(|_| {
            bound.vdma.mark_dead();
            stop(&mut control, bound.vdma.queues(), ENODEV);
        })
    }

    fn remove(device: &Device<'_>, bound: &Bound) {
        // From here on there are no restarts, no new files, no new requests, no accesses through
        // mappings; the requests in the queues complete when the device is reset.
        let (watchdog, node) = {
            let mut active = bound.active.lock();
            (active.watchdog.take(), active.node.take())
        };
        // Waits for a check, which may want the control: it is not held here.
        drop(watchdog);
        drop(node);
        bound.vdma.mark_dead();
        stop(&mut device.control(), bound.vdma.queues(), ENODEV);
    }
}

impl Bound {
    fn new(device: &Device<'_>, vdma: Arc<Vdma>, number: Number) -> Result<Arc<Self>> {
        let name = CString::try_from_fmt(fmt!("vdma{}", number.0))?;
        let node = DeviceNode::new(name, vdma.clone(), device.as_device());
        let node = KBox::pin_init(node, GFP_KERNEL)?;
        let debugfs = Directory::new(vdma.device_observer().clone(), vdma.queues().clone())?;
        let active = Active {
            watchdog: None,
            node: Some(node),
        };
        Arc::pin_init(
            try_pin_init!(Self {
                active <- new_mutex!(active, "vdma_bound"),
                _debugfs: debugfs,
                vdma,
                number,
            }? Error),
            GFP_KERNEL,
        )
    }
}

/// Whether the device is one that this driver knows: `ENODEV` for others, `EINVAL` for a
/// configuration space with impossible values.
fn identify(device: &Device<'_>, config: &Config) -> Result {
    let dev = device.as_device();
    if config.magic.get() != CONFIG_MAGIC || config.version.get() != CONFIG_VERSION {
        dev_info!(
            dev,
            "not a vdma device of version {}: magic {:#x}, version {}; ignoring it\n",
            CONFIG_VERSION,
            config.magic.get(),
            config.version.get()
        );
        return Err(ENODEV);
    }
    if let Err(what) = check_config(config) {
        dev_err!(dev, "configuration space: {}\n", what);
        return Err(EINVAL);
    }
    Ok(())
}

/// Queues without virtqueues: [`start`] is next.
fn create_queues(count: u16, watchdog: &Arc<Watchdog>) -> Result<Arc<Queues>> {
    let poll_waiters = Arc::pin_init(queue::poll_waiters(), GFP_KERNEL)?;
    let mut queues = Queues::with_capacity(count.into(), GFP_KERNEL)?;
    for number in 0..u32::from(count) {
        let queue = Queue::new(number, poll_waiters.clone(), watchdog.clone());
        queues.push(Arc::pin_init(queue, GFP_KERNEL)?, GFP_KERNEL)?;
    }
    Ok(Arc::new(queues, GFP_KERNEL)?)
}

/// What the device can reach, and in how many bits: the parameter `dma_bits`, up to what the
/// transport can do. Where the device uses the DMA API, its mask is set accordingly.
fn dma_reach(device: &Device<'_>) -> Result<(Reach, u32)> {
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

/// The device as open files see it, once it has started.
fn create_vdma(
    device: &Device<'_>,
    queues: Arc<Queues>,
    (reach, dma_bits): (Reach, u32),
    observer: Arc<Observer>,
) -> Result<Arc<Vdma>> {
    // Read again: `state` says now whether device memory is mapped.
    let config = read_config(device)?;
    let queue_size = queues
        .first()
        .and_then(|queue| queue.with_virtqueue(|virtqueue| virtqueue.size()))
        .ok_or(ENODEV)?;
    let bar = map_bar(device, &config);
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
    let limits = request_limits(&info, device.max_segment());
    Vdma::new(queues, info, limits, reach, bar, observer)
}

/// Device memory in the BAR, if the device has mapped it there.
fn map_bar(device: &Device<'_>, config: &Config) -> Option<Pin<KBox<Bar>>> {
    if config.state.get() & STATE_BAR_MAPPED == 0 {
        return None;
    }
    let region = device.shared_memory(SHMEM_ID_DEVICE_MEMORY)?;
    Bar::new(region, config.memory_size.get())
        .and_then(|bar| Ok(KBox::pin_init(bar, GFP_KERNEL)?))
        .inspect_err(|error| {
            dev_warn!(device.as_device(), "cannot map the BAR: {:?}\n", error);
        })
        .ok()
}

/// Limits of the requests of a device.
fn request_limits(info: &DeviceInfo, max_segment_size: usize) -> Limits {
    let limits = Limits {
        max_bytes: info.max_transfer as usize,
        max_segments: info.max_segments as usize,
        max_segment_size,
    };
    if info.dma_bits == u64::BITS {
        return limits;
    }
    // Bounced pages are segments of their own: a segment of `n` pages has at least `n - 2` whole
    // ones, so that a quarter of the segments, and as many whole pages, become fewer than all.
    limits.for_any_pages(limits.max_segments / 4)
}

fn log_probed(device: &Device<'_>, bound: &Bound) {
    let info = bound.vdma.info();
    dev_info!(
        device.as_device(),
        "vdma{}: {} MiB of device memory, {} queue(s) of {}, {}\n",
        bound.number.0,
        info.memory_size >> 20,
        info.num_queues,
        info.queue_size,
        if info.bar_size > 0 {
            "mapped in a BAR"
        } else {
            "no BAR: mmap is not available"
        }
    );
}

/// The configuration space, which the device may change between two readings: each is checked.
/// Errors as for [`identify`].
fn read_config(device: &Device<'_>) -> Result<Config> {
    let config = Config::from_bytes(&device.read_config());
    identify(device, &config)?;
    Ok(config)
}

/// Refuses values that the rest of the driver cannot handle.
fn check_config(config: &Config) -> Result<(), &'static str> {
    let page = kernel::page::PAGE_SIZE as u64;
    let size = config.memory_size.get();
    if size == 0 || size % page != 0 || size > i64::MAX as u64 {
        return Err("memory_size is not a positive multiple of the page size");
    }
    if !(1..=MAX_QUEUES).contains(&config.num_queues.get()) {
        return Err("num_queues is not between 1 and 16");
    }
    if config.max_segments.get() <= FIXED_SEGMENTS {
        return Err("max_segments leaves no descriptor for data");
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
