// SPDX-License-Identifier: GPL-2.0

//! The driver on the virtio bus: how a device is found, started, watched, restarted and let go.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    str::CString,
    sync::{
        Arc,
        atomic::{Atomic, Full, Relaxed},
    },
};

use crate::{
    io::{
        bounce::Reach,
        device::{Limits, Vdma},
        queue::{self, EPOCHS_PER_TIMEOUT, Health, Queue, Queues, WhenFull},
        request::Request,
        submit::submit_empty,
    },
    linux::{chardev, compat, slab::SlabBox},
    memory::bar::Bar,
    observe::{DeviceObserver, Observer, debugfs::Directory},
    protocol::{
        CONFIG_MAGIC, CONFIG_VERSION, Config, DeviceInfo, FEATURE_BAR, Operation,
        SHMEM_ID_DEVICE_MEMORY, STATE_BAR_MAPPED,
    },
    virtio,
    watchdog::{Leash, Ward, Watchdog},
};

/// Descriptors of a request that are not data: the header and the response.
const FIXED_SEGMENTS: u32 = 2;

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

/// Gives the queues their virtqueues, starts the device, and waits for its first answer. May sleep.
///
/// On failure the device may have to be stopped.
fn start(device: &virtio::Device, queues: &Queues, observer: &Arc<Observer>) -> Result {
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
    let queue = queues.first().ok_or(ENODEV)?;
    submit_empty(queue, Operation::Nop, observer.clone(), WhenFull::Fail)?
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
        let mut ill = false;
        for queue in &**self.vdma.queues() {
            ill |= !matches!(queue.advance_epoch(), Health::Good);
        }
        if !ill {
            return;
        }
        // SAFETY: The leash of the watchdog is dropped before the device goes.
        let device = unsafe { self.device.as_ref() };
        // Removal, suspend and others who restart the device hold the locks; whatever they do comes
        // before another look at the queues.
        let Some(_lock) = device.try_lock() else {
            return;
        };
        let (late, broken) = self.look();
        if !late && !broken {
            return;
        }
        let dev = device.as_device();
        let what = if broken {
            "the ring is broken"
        } else {
            "a request was not answered in time"
        };
        // A broken ring is a sign of life. Otherwise the device has to give one: to start a device
        // whose back end is gone makes QEMU abort (11.1), and the guest with it.
        if !broken && !self.vdma.is_alive() {
            dev_err!(
                dev,
                "{}, and the device does not answer any more; given up. Plug it anew, or bind the driver again\n",
                what
            );
            self.vdma.mark_dead();
            stop(device, self.vdma.queues(), ENODEV);
            return;
        }
        // What was late may have been the sign of life.
        if self.look() == (false, false) {
            return;
        }
        dev_warn!(dev, "{}; resetting the device\n", what);
        match device.restart() {
            Ok(()) => dev_info!(dev, "the device is back\n"),
            Err(error) => {
                dev_err!(
                    dev,
                    "the device does not come back: {:?}; given up\n",
                    error
                );
                self.vdma.mark_dead();
                stop(device, self.vdma.queues(), ENODEV);
            }
        }
    }
}

impl Recovery {
    /// Whether a request of any queue is late, and whether a queue is broken, once what has come back has
    /// been seen.
    fn look(&self) -> (bool, bool) {
        let mut late = false;
        let mut broken = false;
        for queue in &**self.vdma.queues() {
            queue.reap();
            match queue.health() {
                Health::Good => {}
                Health::Late => late = true,
                Health::Broken => broken = true,
            }
        }
        (late, broken)
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
        let watchdog = Watchdog::new(timeout_ms.div_ceil(EPOCHS_PER_TIMEOUT))?;
        let poll_waiters = Arc::pin_init(queue::poll_waiters(), GFP_KERNEL)?;
        let mut queues = Queues::with_capacity(config.num_queues.get().into(), GFP_KERNEL)?;
        for _ in 0..config.num_queues.get() {
            let number = queues.len() as u32;
            let queue = Queue::new(number, poll_waiters.clone(), watchdog.clone());
            let queue = KBox::pin_init(queue, GFP_KERNEL)?;
            queues.push(queue, GFP_KERNEL)?;
        }
        let queues = Arc::new(queues, GFP_KERNEL)?;
        let number = Number::allocate()?;
        let observer = Observer::new(DeviceObserver::new(number.0)?)?;
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
            max_bytes: info.max_transfer as usize,
            max_segments: info.max_segments as usize,
            max_segment_size: device.max_segment(),
        };
        // Bounced pages are entries of their own: an entry of `n` pages has at least `n - 2` whole ones,
        // so that a quarter of the entries, and as many whole pages, become fewer than all.
        let limits = if dma_bits < u64::BITS {
            all.for_any_pages(all.max_segments / 4)
        } else {
            all
        };
        let vdma = Vdma::new(queues.clone(), info, limits, reach, bar, observer)?;
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
        for queue in &**bound.vdma.queues() {
            queue.pause();
        }
        stop(device, bound.vdma.queues(), EIO);
    }

    fn resume(device: &virtio::Device, bound: &Bound) -> Result {
        // To start a device that was given up may end the machine: see `Recovery`.
        if bound.vdma.queues().iter().any(|queue| queue.is_closed()) {
            return Err(ENODEV);
        }
        start(device, bound.vdma.queues(), bound.vdma.observer()).inspect_err(|_| {
            bound.vdma.mark_dead();
            stop(device, bound.vdma.queues(), ENODEV);
        })
    }

    fn remove(device: &virtio::Device, mut bound: KBox<Bound>) {
        // No restart any more, no new files, no new requests, no access through mappings; what is
        // with the device comes back when it is reset.
        bound.leash = None;
        bound.node = None;
        bound.vdma.mark_dead();
        stop(device, bound.vdma.queues(), ENODEV);
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
        let debugfs = Directory::new(vdma.device_observer().clone(), vdma.queues().clone())?;
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
