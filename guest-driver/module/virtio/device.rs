// SPDX-License-Identifier: GPL-2.0

//! A device on the virtio bus.

use core::{mem::size_of, ptr};

use kernel::{
    device,
    ffi::c_void,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Release},
    types::Opaque,
};

use super::{Buffer, VirtQueue};
use crate::linux::bindings::{
    vdma_device_trylock, vdma_device_unlock, vdma_set_dma_mask, vdma_virtio_cread_words,
    vdma_virtio_del_vqs, vdma_virtio_device_ready, vdma_virtio_features, vdma_virtio_find_vqs,
    vdma_virtio_get_shm_region, virtio_device, virtio_device_reset_done,
    virtio_device_reset_prepare, virtio_max_dma_size, virtio_reset_device, virtio_shm_region,
    virtqueue, virtqueue_info,
};

/// A window of guest-physical addresses in which the device shows memory (virtio 1.2, section 2.10).
#[derive(Clone, Copy)]
pub(crate) struct SharedMemory {
    pub(crate) address: u64,
    pub(crate) size: u64,
}

/// What a driver does when the device has used buffers of a queue.
pub(crate) trait QueueHandler: Sync {
    /// Called in interrupt context, with the interrupts of this CPU off.
    fn on_used(&self);
}

/// Feature bit of virtio 1.2, section 6.
const VIRTIO_F_ACCESS_PLATFORM: u32 = 33;

/// Most queues that a device may have here.
const MAX_QUEUES: usize = 16;

/// What `priv` of a device points at while it is probed or bound. (`priv` of a queue is taken: the
/// transport keeps its notification address there.)
pub(super) struct Private {
    handlers: [Atomic<*mut c_void>; MAX_QUEUES],
    /// [`super::Driver::Data`], once the device is bound.
    pub(super) data: *mut c_void,
}

impl Private {
    pub(super) fn new() -> Self {
        Self {
            handlers: core::array::from_fn(|_| Atomic::new(ptr::null_mut())),
            data: ptr::null_mut(),
        }
    }
}

/// The locks of a device and of its transport's, until dropped.
pub(crate) struct DeviceLock<'a>(&'a Device);

impl Drop for DeviceLock<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken when this object was made.
        unsafe { vdma_device_unlock(self.0.as_device_ptr()) }
    }
}

/// `struct virtio_device`, bound to this driver.
#[repr(transparent)]
pub(crate) struct Device(Opaque<virtio_device>);

impl Device {
    /// # Safety
    ///
    /// `raw` is a valid device for as long as the reference is used.
    pub(super) unsafe fn from_raw<'a>(raw: *mut virtio_device) -> &'a Self {
        // SAFETY: `Self` is a transparent wrapper; the caller vouches for the rest.
        unsafe { &*raw.cast() }
    }

    fn raw(&self) -> *mut virtio_device {
        self.0.get()
    }

    pub(super) fn set_private(&self, private: *mut Private) {
        // SAFETY: `priv` of the device belongs to its driver.
        unsafe { (*self.raw()).priv_ = private.cast() }
    }

    pub(super) fn private(&self) -> *mut Private {
        // SAFETY: `priv` of the device belongs to its driver.
        unsafe { (*self.raw()).priv_ }.cast()
    }

    /// The generic device, for messages.
    pub(crate) fn as_device(&self) -> &device::Device {
        // SAFETY: The embedded device lives as long as the virtio device.
        unsafe { device::Device::from_raw(ptr::addr_of_mut!((*self.raw()).dev)) }
    }

    /// The generic device as C code wants it.
    pub(crate) fn as_device_ptr(&self) -> *mut kernel::bindings::device {
        // SAFETY: Only the address is taken.
        unsafe { ptr::addr_of_mut!((*self.raw()).dev) }
    }

    /// Width of the addresses that the transport can hand to the device: that of its DMA mask, 0
    /// without one.
    pub(crate) fn dma_bits(&self) -> u32 {
        // SAFETY: A device on the bus has its transport's device as its parent, which outlives it.
        let mask = unsafe { (*(*self.raw()).dev.parent).dma_mask };
        // SAFETY: Null, or the mask of that device, which nobody changes while a driver is bound.
        unsafe { mask.as_ref() }.map_or(0, |mask| u64::BITS - mask.leading_zeros())
    }

    /// Whether addresses go through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`); otherwise the device is
    /// told physical ones.
    pub(crate) fn uses_dma_api(&self) -> bool {
        self.features() & 1 << VIRTIO_F_ACCESS_PLATFORM != 0
    }

    /// Limits the addresses that the DMA API hands out to so many bits. May sleep.
    pub(crate) fn set_dma_bits(&self, bits: u32) -> Result {
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
        const { assert!(N % size_of::<u32>() == 0) };
        let mut bytes = [0; N];
        let words = N / size_of::<u32>();
        // SAFETY: `bytes` has room for so many words; they are copied into it as bytes.
        unsafe { vdma_virtio_cread_words(self.raw(), 0, bytes.as_mut_ptr().cast(), words) };
        bytes
    }

    /// The shared-memory window with this id, if the device has it.
    pub(crate) fn shared_memory(&self, id: u8) -> Option<SharedMemory> {
        let mut region = virtio_shm_region::default();
        // SAFETY: `region` is valid for writes.
        let found = unsafe { vdma_virtio_get_shm_region(self.raw(), &mut region, id) };
        found.then_some(SharedMemory {
            address: region.addr,
            size: region.len,
        })
    }

    /// Most bytes that one DMA segment may have.
    pub(crate) fn max_segment(&self) -> usize {
        // SAFETY: Valid by the type's invariant.
        unsafe { virtio_max_dma_size(self.raw()) }
    }

    /// Creates the first `count` queues, 16 at the most, with `H` as the handler of each. May sleep.
    ///
    /// Their interrupts do nothing until [`Device::attach_handler`].
    pub(crate) fn create_queues<B: Buffer, H: QueueHandler>(
        &self,
        count: usize,
    ) -> Result<KVec<VirtQueue<B>>> {
        let mut raw: KVec<*mut virtqueue> = KVec::new();
        raw.extend_with(count, ptr::null_mut(), GFP_KERNEL)?;
        let mut info = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            info.push(
                virtqueue_info {
                    name: c"requests".as_ptr().cast(),
                    callback: Some(Self::on_used::<H>),
                    ctx: false,
                },
                GFP_KERNEL,
            )?;
        }
        let mut queues = KVec::with_capacity(count, GFP_KERNEL)?;
        // SAFETY: Both arrays have `count` elements; the names are static.
        kernel::error::to_result(unsafe {
            vdma_virtio_find_vqs(
                self.raw(),
                count as u32,
                raw.as_mut_ptr(),
                info.as_mut_ptr(),
            )
        })?;
        for queue in raw {
            // SAFETY: The call above filled in valid queues, each of which is wrapped once.
            queues.push(unsafe { VirtQueue::from_raw(queue) }, GFP_KERNEL)?;
        }
        Ok(queues)
    }

    /// Lets the interrupts of `queue` call `handler`.
    ///
    /// # Safety
    ///
    /// `handler` has the type that the queue was created with, and stays where it is until
    /// [`Device::delete_queues`].
    pub(crate) unsafe fn attach_handler<B: Buffer, H: QueueHandler>(
        &self,
        queue: &mut VirtQueue<B>,
        handler: &H,
    ) {
        // SAFETY: A device that is probed or bound has its private part.
        let private = unsafe { &*self.private() };
        if let Some(slot) = private.handlers.get(queue.index()) {
            slot.store(ptr::from_ref(handler).cast_mut().cast(), Release);
        }
    }

    extern "C" fn on_used<H: QueueHandler>(queue: *mut virtqueue) {
        // SAFETY: The bus hands in a valid queue of a device that is probed or bound.
        let (device, index) = unsafe { ((*queue).vdev, (*queue).index as usize) };
        // SAFETY: As above; the private part stays until the queues are deleted.
        let private = unsafe { &*(*device).priv_.cast::<Private>() };
        let handler = private
            .handlers
            .get(index)
            .map_or(ptr::null_mut(), |slot| slot.load(Acquire));
        // SAFETY: Null, or attached and alive by the contract of `attach_handler`.
        if let Some(handler) = unsafe { handler.cast::<H>().as_ref() } {
            handler.on_used();
        }
    }

    /// Tells the device that the driver is ready: from now on it serves the queues.
    pub(crate) fn set_ready(&self) {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_virtio_device_ready(self.raw()) }
    }

    /// Resets the device. Afterwards it touches no buffer, and no handler runs. May sleep.
    pub(crate) fn reset(&self) {
        // SAFETY: Valid by the type's invariant.
        unsafe { virtio_reset_device(self.raw()) }
    }

    /// The locks that the driver core holds while it binds or unbinds the device, and while it suspends
    /// or resets the transport's, if nobody has them.
    pub(crate) fn try_lock(&self) -> Option<DeviceLock<'_>> {
        // SAFETY: The embedded device is initialized, and its parent outlives it.
        unsafe { vdma_device_trylock(self.as_device_ptr()) }.then_some(DeviceLock(self))
    }

    /// Resets the device and negotiates its features again, with [`super::Driver::quiesce`] before and
    /// [`super::Driver::resume`] after. May sleep.
    ///
    /// The caller makes sure that the device is not removed meanwhile.
    pub(crate) fn restart(&self) -> Result {
        // SAFETY: Valid by the type's invariant; the driver has the callbacks that this needs.
        kernel::error::to_result(unsafe { virtio_device_reset_prepare(self.raw()) })?;
        // SAFETY: As above.
        kernel::error::to_result(unsafe { virtio_device_reset_done(self.raw()) })
    }

    /// Deletes all queues and frees their interrupts; a handler that runs is waited for. May sleep.
    ///
    /// # Safety
    ///
    /// The device has been reset, and no [`VirtQueue`] of it is used any more.
    pub(crate) unsafe fn delete_queues(&self) {
        // SAFETY: The caller vouches for it.
        unsafe { vdma_virtio_del_vqs(self.raw()) }
    }
}
