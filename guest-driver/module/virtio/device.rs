// SPDX-License-Identifier: GPL-2.0

//! A device on the virtio bus.

use core::{
    mem::size_of,
    ptr::{self, NonNull},
};

use kernel::{
    device,
    ffi::c_void,
    prelude::*,
    sync::{
        Arc, Mutex, MutexGuard,
        aref::ARef,
        atomic::{Acquire, Atomic, Release},
    },
};

use crate::linux::{
    bindings::{
        vdma_device_trylock, vdma_device_unlock, vdma_set_dma_mask, vdma_virtio_cread_words,
        vdma_virtio_del_vqs, vdma_virtio_device_ready, vdma_virtio_features,
        vdma_virtio_get_shm_region, virtio_device, virtio_device_reset_done,
        virtio_device_reset_prepare, virtio_max_dma_size, virtio_reset_device, virtio_shm_region,
        virtqueue,
    },
    io_memory::IoRange,
    unload::ModuleUser,
};

/// What a driver does when the device has used buffers of a queue.
pub(crate) trait QueueHandler: Send + Sync + 'static {
    /// Called in interrupt context, with the interrupts of this CPU off.
    fn on_used(&self);
}

/// Feature bit of virtio 1.2, section 6.
const VIRTIO_F_ACCESS_PLATFORM: u32 = 33;

/// Most queues that a device may have here.
pub(crate) const MAX_QUEUES: usize = 16;

/// What the wrapper keeps for each queue. On a cache line of its own: CPUs that use different
/// queues share none.
#[repr(align(64))]
pub(super) struct QueueSlot {
    /// Null, or a share in the handler: an `Arc` of the type that the queue's callback was made
    /// for.
    pub(super) handler: Atomic<*mut c_void>,
    /// Kicks that are being sent.
    pub(super) kicks: Atomic<i32>,
}

/// Progress of a device that is probed or bound.
pub(super) struct Progress {
    /// Queues that were created and not deleted.
    pub(super) queues: usize,
    /// How the handlers of these queues are dropped.
    pub(super) drop_handler: Option<unsafe fn(*mut c_void)>,
    /// The driver is being unbound, or failed to bind: no queue is created any more.
    pub(super) is_gone: bool,
}

/// What `priv` of a device points at while it is probed or bound: a share in this. (`priv` of a
/// queue is taken: the transport keeps its notification address there.)
///
/// # Invariants
///
/// While `priv` points here, so may interrupts, until the queues are deleted. While there are
/// queues, the `handler` of each slot, the callback of its queue and `drop_handler` are for the
/// same type of handler.
#[pin_data]
pub(super) struct Private {
    pub(super) slots: [QueueSlot; MAX_QUEUES],
    /// Virtqueues of the device that are not dropped.
    pub(super) live: Atomic<i32>,
    /// Null, or a share in the driver's data: an `Arc` of the type that [`super::driver`] makes.
    pub(super) data: Atomic<*mut c_void>,
    /// Held while the state of the device is changed. Taken inside of the locks of the transport's
    /// device and of this one, and by holders of none: it is the innermost of these three. What it
    /// protects sleeps.
    #[pin]
    control: Mutex<Progress>,
    /// For callbacks that find the device, and wait for the control, while it is being unbound.
    /// Last, for it is dropped last.
    _user: ModuleUser,
}

impl Private {
    pub(super) fn new() -> Result<Arc<Self>> {
        let progress = Progress {
            queues: 0,
            drop_handler: None,
            is_gone: false,
        };
        Arc::pin_init(
            try_pin_init!(Self {
                slots: core::array::from_fn(|_| QueueSlot {
                    handler: Atomic::new(ptr::null_mut()),
                    kicks: Atomic::new(0),
                }),
                live: Atomic::new(0),
                data: Atomic::new(ptr::null_mut()),
                control <- kernel::new_mutex!(progress, "vdma_control"),
                _user: ModuleUser::new(),
            }? Error),
            GFP_KERNEL,
        )
    }
}

/// `struct virtio_device`, probed by or bound to this driver, in a callback of the bus or under its
/// locks.
///
/// # Invariants
///
/// `raw` is valid for `'a`.
pub(crate) struct Device<'a> {
    raw: NonNull<virtio_device>,
    pub(super) private: &'a Arc<Private>,
}

impl<'a> Device<'a> {
    /// # Safety
    ///
    /// `raw` is a valid device for `'a`, and `private` what was made for it.
    pub(super) unsafe fn new(raw: NonNull<virtio_device>, private: &'a Arc<Private>) -> Self {
        // INVARIANT: The caller vouches for `raw`.
        Self { raw, private }
    }

    pub(super) fn raw(&self) -> *mut virtio_device {
        self.raw.as_ptr()
    }

    /// The generic device, for messages and as a parent.
    pub(crate) fn as_device(&self) -> &device::Device {
        // SAFETY: The embedded device lives as long as the virtio device.
        unsafe { device::Device::from_raw(ptr::addr_of_mut!((*self.raw()).dev)) }
    }

    /// Width of the addresses that the transport can hand to the device: that of its DMA mask, 0
    /// without one.
    pub(crate) fn dma_bits(&self) -> u32 {
        // SAFETY: A device on the bus has its transport's device as its parent, which outlives it.
        let mask = unsafe { (*(*self.raw()).dev.parent).dma_mask };
        // SAFETY: Null, or a mask that lives as long as that device. While a driver is bound, or
        // being bound, only `set_dma_bits` changes it, and a word is read at once.
        unsafe { mask.as_ref() }.map_or(0, |mask| u64::BITS - mask.leading_zeros())
    }

    /// Whether addresses go through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`); otherwise the device
    /// is told physical ones.
    pub(crate) fn uses_dma_api(&self) -> bool {
        self.features() & 1 << VIRTIO_F_ACCESS_PLATFORM != 0
    }

    /// Limits the addresses that the DMA API hands out to this width. May sleep.
    pub(crate) fn set_dma_bits(&self, bits: u32) -> Result {
        if !(1..=u64::BITS).contains(&bits) {
            return Err(EINVAL);
        }
        // SAFETY: Valid by the type's invariant.
        kernel::error::to_result(unsafe { vdma_set_dma_mask(self.raw(), bits) })
    }

    /// The negotiated feature bits 0 to 63.
    pub(crate) fn features(&self) -> u64 {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_virtio_features(self.raw()) }
    }

    /// The first `N` bytes of the configuration space, in words: each access is an exit from the
    /// guest and a message to the device. May sleep.
    pub(crate) fn read_config<const N: usize>(&self) -> [u8; N] {
        // The transport maps the page of the configuration space; a device has no less than this.
        const { assert!(N % size_of::<u32>() == 0 && N <= 256) };
        let mut bytes = [0; N];
        let words = N / size_of::<u32>();
        // SAFETY: `bytes` has space for that number of words; they are copied into it as bytes.
        unsafe { vdma_virtio_cread_words(self.raw(), 0, bytes.as_mut_ptr().cast(), words) };
        bytes
    }

    /// The shared-memory window with this id (virtio 1.2, section 2.10), if the device has it.
    pub(crate) fn shared_memory(&self, id: u8) -> Option<IoRange> {
        let mut region = virtio_shm_region::default();
        // SAFETY: `region` is valid for writes.
        let found = unsafe { vdma_virtio_get_shm_region(self.raw(), &mut region, id) };
        // SAFETY: The window is a part of a BAR, which the transport has reserved for the device.
        found.then(|| unsafe { IoRange::new(region.addr, region.len) })
    }

    /// Most bytes that one DMA segment may have.
    pub(crate) fn max_segment(&self) -> usize {
        // SAFETY: Valid by the type's invariant.
        unsafe { virtio_max_dma_size(self.raw()) }
    }

    /// The right to change the state of the device, which one task has at a time. May sleep.
    pub(crate) fn control(&self) -> Control<'_> {
        Control {
            device: self,
            progress: self.private.control.lock(),
        }
    }

    /// A handle by which the device can be found again later, if it is still bound.
    pub(crate) fn handle(&self) -> DeviceHandle {
        // SAFETY: The device has its transport's as its parent, which outlives it.
        let parent: &device::Device = unsafe { device::Device::from_raw((*self.raw()).dev.parent) };
        // INVARIANT: References are taken to both devices.
        DeviceHandle {
            raw: self.raw,
            _device: self.as_device().into(),
            _parent: parent.into(),
            private: self.private.clone(),
        }
    }

    /// Marks the device as unbound: resets it, if the driver has left queues, and deletes them. May
    /// sleep.
    pub(super) fn retire(&self) {
        let mut control = self.control();
        control.progress.is_gone = true;
        if control.progress.queues > 0 {
            control.stop().delete_queues();
        }
    }

    pub(super) unsafe extern "C" fn on_used<H: QueueHandler>(queue: *mut virtqueue) {
        // SAFETY: The bus hands in a valid queue of a device that is probed or bound.
        let (device, index) = unsafe { ((*queue).vdev, (*queue).index as usize) };
        // SAFETY: `priv` points at a `Private` until the queues are deleted, which waits for
        // interrupts.
        let private = unsafe { &*(*device).priv_.cast::<Private>() };
        let handler = private
            .slots
            .get(index)
            .map_or(ptr::null_mut(), |slot| slot.handler.load(Acquire));
        // SAFETY: Null, or a share in an `H`, for `create_queues` has made this callback and stored
        // the handler with the same type; it is dropped after the queues are deleted.
        if let Some(handler) = unsafe { handler.cast::<H>().as_ref() } {
            handler.on_used();
        }
    }
}

/// The right to change the state of a device.
///
/// It excludes the callbacks of the bus against each other: probe and remove have the lock of the
/// virtio device, function reset and suspend that of the transport's, and the watchdog tries both.
pub(crate) struct Control<'a> {
    pub(super) device: &'a Device<'a>,
    pub(super) progress: MutexGuard<'a, Progress>,
}

/// Drops a share in a handler.
///
/// # Safety
///
/// `handler` comes from `Arc::<H>::into_raw`, and is dropped once.
pub(super) unsafe fn drop_handler<H: QueueHandler>(handler: *mut c_void) {
    // SAFETY: The caller vouches for it.
    drop(unsafe { Arc::from_raw(handler.cast::<H>().cast_const()) });
}

impl<'a> Control<'a> {
    /// Drops the handlers. No interrupt may come any more.
    pub(super) fn drop_handlers(&mut self) {
        let Some(drop_handler) = self.progress.drop_handler.take() else {
            return;
        };
        for slot in &self.device.private.slots {
            let handler = slot.handler.load(Acquire);
            slot.handler.store(ptr::null_mut(), Release);
            if !handler.is_null() {
                // SAFETY: `create_queues` has put the share there, and the function that fits its
                // type aside; the pointer was cleared above.
                unsafe { drop_handler(handler) };
            }
        }
    }

    /// Tells the device that the driver is ready: from now on it serves the queues.
    pub(crate) fn set_ready(&mut self) {
        // SAFETY: Valid by the invariant of `Device`.
        unsafe { vdma_virtio_device_ready(self.device.raw()) }
    }

    /// Resets the device. Until the result is dropped it touches no memory of its driver, and no
    /// handler runs. May sleep.
    pub(crate) fn stop<'c>(&'c mut self) -> Stopped<'c, 'a> {
        // SAFETY: Valid by the invariant of `Device`.
        unsafe { virtio_reset_device(self.device.raw()) };
        // INVARIANT: The device was reset, and `control` is the result's.
        Stopped { control: self }
    }
}

/// The proof that a device has been reset.
///
/// # Invariants
///
/// The device is in reset: nothing starts it without the control, which this has.
pub(crate) struct Stopped<'c, 'a> {
    control: &'c mut Control<'a>,
}

impl Stopped<'_, '_> {
    /// Whether this is the proof for that device.
    pub(super) fn is_of(&self, private: &Private) -> bool {
        ptr::eq(&**self.control.device.private, private)
    }

    /// Deletes all queues and frees their interrupts; a handler that runs is waited for. May sleep.
    ///
    /// PANIC: The queues must have been dropped, for a queue that is used afterwards is freed
    /// memory.
    pub(crate) fn delete_queues(self) {
        let control = self.control;
        if control.progress.queues == 0 {
            return;
        }
        // PANIC: A driver that keeps a queue would use freed memory afterwards.
        assert!(
            control.device.private.live.load(Acquire) == 0,
            "a virtqueue is in use"
        );
        control.progress.queues = 0;
        // SAFETY: The device has been reset, by the type's invariant, its queues exist, and no
        // wrapper of one is left.
        unsafe { vdma_virtio_del_vqs(control.device.raw()) };
        control.drop_handlers();
    }
}

/// A handle to a device that may be gone by now.
///
/// # Invariants
///
/// There is a reference to the device and to its parent, so that both can be locked.
pub(crate) struct DeviceHandle {
    raw: NonNull<virtio_device>,
    _device: ARef<device::Device>,
    _parent: ARef<device::Device>,
    private: Arc<Private>,
}

// SAFETY: The references may be dropped, and the locks tried, by any task.
unsafe impl Send for DeviceHandle {}
// SAFETY: A shared reference only allows to try the locks.
unsafe impl Sync for DeviceHandle {}

impl DeviceHandle {
    fn device_ptr(&self) -> *mut kernel::bindings::device {
        // SAFETY: The device is there, by the type's invariant; only the address is taken.
        unsafe { &raw mut (*self.raw.as_ptr()).dev }
    }

    /// Locks the device and its transport's, as the driver core does while it binds or unbinds the
    /// one, and suspends or resets the other. `None` if either is locked, or the device is not
    /// bound any more.
    pub(crate) fn try_lock(&self) -> Option<LockedDevice<'_>> {
        // SAFETY: The devices are there, by the type's invariant.
        if !unsafe { vdma_device_trylock(self.device_ptr()) } {
            return None;
        }
        // INVARIANT: Locked above.
        let lock = DeviceLock(self);
        // SAFETY: The device is there, and `priv` changes under its lock only. As this handle has a
        // share in the `Private`, no other one has its address.
        let private = unsafe { (*self.raw.as_ptr()).priv_ };
        let is_bound = ptr::eq(private.cast_const().cast(), Arc::as_ptr(&self.private));
        // INVARIANT: The device is bound to this driver, and stays so as long as it is locked.
        is_bound.then(|| LockedDevice {
            device: Device {
                raw: self.raw,
                private: &self.private,
            },
            _lock: lock,
        })
    }
}

/// The locks of a device and of its transport's, until dropped.
///
/// # Invariants
///
/// The task that has this object holds both locks.
struct DeviceLock<'a>(&'a DeviceHandle);

impl Drop for DeviceLock<'_> {
    fn drop(&mut self) {
        // SAFETY: The locks are held, by the type's invariant.
        unsafe { vdma_device_unlock(self.0.device_ptr()) }
    }
}

/// A device that is bound, and locked together with its transport's.
pub(crate) struct LockedDevice<'a> {
    device: Device<'a>,
    _lock: DeviceLock<'a>,
}

impl<'a> LockedDevice<'a> {
    pub(crate) fn device(&self) -> &Device<'a> {
        &self.device
    }

    /// Resets the device and negotiates its features again, with [`super::Driver::quiesce`] before
    /// and [`super::Driver::resume`] after: the caller has no [`Control`]. May sleep.
    pub(crate) fn restart(&self) -> Result {
        // SAFETY: The device is valid, and bound to this driver, which has the callbacks that this
        // needs; the lock that the transport has while it calls this is held.
        kernel::error::to_result(unsafe { virtio_device_reset_prepare(self.device.raw()) })?;
        // SAFETY: The device and its driver are still those of the call above, for they are locked.
        kernel::error::to_result(unsafe { virtio_device_reset_done(self.device.raw()) })
    }
}
