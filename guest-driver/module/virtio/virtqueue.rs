// SPDX-License-Identifier: GPL-2.0

//! Virtqueues that own the descriptor chains in them.

use core::{
    marker::PhantomData,
    ptr::{self, NonNull},
};

use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        atomic::{Acquire, Atomic, Relaxed, Release},
    },
};

use super::{
    chain::{Chain, from_token, into_token},
    device::{
        Control, Device, MAX_QUEUES, Private, QueueHandler, QueueSlot, Stopped, drop_handler,
    },
};
use crate::linux::{
    bindings::{
        vdma_dma_map_page, vdma_virtio_find_vqs, vdma_virtqueue_free,
        vdma_virtqueue_spread_interrupts, virtqueue, virtqueue_add_sgs,
        virtqueue_detach_unused_buf, virtqueue_disable_cb, virtqueue_enable_cb, virtqueue_get_buf,
        virtqueue_get_vring_size, virtqueue_info, virtqueue_is_broken, virtqueue_kick_prepare,
        virtqueue_notify,
    },
    delay,
    page::Page,
    slab::SlabBox,
};

/// A virtqueue whose chains are `C`s. A chain in the queue belongs to the queue. Dropped in process
/// context, and, unless it is empty, with the chains lost.
///
/// # Invariants
///
/// `raw` is a queue that is not deleted; every token in it comes from `into_token::<C>`. `slot` is
/// the one of the queue in `private`, whose `live` counts this object.
pub(crate) struct VirtQueue<C: Chain> {
    raw: NonNull<virtqueue>,
    slot: NonNull<QueueSlot>,
    private: Arc<Private>,
    _chains: PhantomData<C>,
}

// SAFETY: Queues may be used from any CPU, by one at a time, which `&mut self` ensures.
unsafe impl<C: Chain + Send> Send for VirtQueue<C> {}

impl<C: Chain> Drop for VirtQueue<C> {
    fn drop(&mut self) {
        // SAFETY: The slot is in the private part, which this object has a share in.
        let kicks = unsafe { &self.slot.as_ref().kicks };
        // No kick begins any more, for that takes this object.
        while kicks.load(Acquire) != 0 {
            delay::sleep_ms(1);
        }
        let _ = self.private.live.fetch_sub(1, Release);
    }
}

impl<C: Chain> VirtQueue<C> {
    /// # Safety
    ///
    /// `raw` is a valid queue with no buffer in it, and is wrapped once. It is deleted when `live`
    /// of `private` is 0. `slot` is that of the queue, in `private`.
    pub(super) unsafe fn from_raw(
        raw: NonNull<virtqueue>,
        private: Arc<Private>,
        slot: NonNull<QueueSlot>,
    ) -> Self {
        private.live.add(1, Relaxed);
        // INVARIANT: The caller vouches for the queue and the slot; it was counted above.
        Self {
            raw,
            slot,
            private,
            _chains: PhantomData,
        }
    }

    /// Descriptors in the ring.
    pub(crate) fn size(&self) -> u32 {
        // SAFETY: Valid by the type's invariant.
        unsafe { virtqueue_get_vring_size(self.raw.as_ptr()) }
    }

    /// Sets the affinity of the interrupt of this queue, one of `queues`, to each `queues`th CPU.
    /// May sleep.
    pub(crate) fn spread_interrupts(&mut self, queues: usize) {
        // 0 would divide by zero.
        let queues = u32::try_from(queues).unwrap_or(u32::MAX).max(1);
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_virtqueue_spread_interrupts(self.raw.as_ptr(), queues) }
    }

    /// Descriptors that are free.
    pub(crate) fn free(&self) -> u32 {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_virtqueue_free(self.raw.as_ptr()) }
    }

    /// The address by which the device would reach `length` bytes at `offset` of `page`: `None`
    /// when there is none, or the page does not have the bytes.
    pub(crate) fn bus_address(&self, page: Page<'_>, offset: usize, length: usize) -> Option<u64> {
        if offset.checked_add(length).is_none_or(|end| end > PAGE_SIZE) {
            return None;
        }
        // SAFETY: The page is held while it is borrowed, has the bytes, and the queue is valid by
        // the type's invariant.
        let address = unsafe {
            vdma_dma_map_page(
                self.raw.as_ptr(),
                page.as_ptr(),
                offset as u32,
                length as u32,
                true,
            )
        };
        (address != u64::MAX).then_some(address)
    }

    /// Whether the device broke the rules of the ring, so that virtio has stopped using it.
    pub(crate) fn is_broken(&self) -> bool {
        // SAFETY: Valid by the type's invariant.
        unsafe { virtqueue_is_broken(self.raw.as_ptr()) }
    }

    /// Adds a chain. Never sleeps. The device may see it at once.
    ///
    /// The chain comes back with `ENOSPC` when the ring is full, `EINVAL` when the device would
    /// write to memory that is not to be written, `ENOMEM` or `EIO` otherwise.
    #[inline]
    pub(crate) fn add(&mut self, mut chain: SlabBox<C>) -> Result<(), (Error, SlabBox<C>)> {
        let mut sg = match chain.sg_lists() {
            Ok(sg) => sg,
            Err(error) => return Err((error, chain)),
        };
        let token = into_token(chain);
        // SAFETY: The lists stay valid while the chain is in the queue, by the contract of `Chain`:
        // it belongs to the queue, which does not access it. `&mut self` serializes the operations
        // on the queue, which is valid by the type's invariant.
        let result = kernel::error::to_result(unsafe {
            virtqueue_add_sgs(
                self.raw.as_ptr(),
                sg.lists.as_mut_ptr(),
                sg.readable as u32,
                sg.writable as u32,
                token.as_ptr(),
                bindings::GFP_ATOMIC,
            )
        });
        // SAFETY: The queue did not take the token, so it is taken back here, once.
        result.map_err(|error| (error, unsafe { from_token(token) }))
    }

    /// Publishes what was added; returns whether the device wants to be notified of it.
    #[inline]
    pub(crate) fn prepare_kick(&mut self) -> Option<Kick> {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        if !unsafe { virtqueue_kick_prepare(self.raw.as_ptr()) } {
            return None;
        }
        // SAFETY: The slot is in the private part, which this object has a share in.
        unsafe { self.slot.as_ref() }.kicks.add(1, Relaxed);
        // INVARIANT: Counted above.
        Some(Kick {
            raw: self.raw,
            slot: self.slot,
        })
    }

    /// Takes the next chain that the device has used, and the bytes that it says to have written.
    ///
    /// Virtio has checked the id: a wrong one breaks the queue, and nothing is returned any more.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<(SlabBox<C>, u32)> {
        let mut written = 0;
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        let token = unsafe { virtqueue_get_buf(self.raw.as_ptr(), &mut written) };
        // SAFETY: The token comes from `add`, and the queue has given it up.
        NonNull::new(token).map(|token| (unsafe { from_token(token) }, written))
    }

    /// Takes back a chain that the device has not used, which is in reset; `None` as well if
    /// `stopped` is the proof for another device.
    pub(crate) fn detach_unused(&mut self, stopped: &Stopped<'_, '_>) -> Option<SlabBox<C>> {
        if !stopped.is_of(&self.private) {
            return None;
        }
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`. The device is in reset.
        let token = unsafe { virtqueue_detach_unused_buf(self.raw.as_ptr()) };
        // SAFETY: The token comes from `add`, the queue has given it up, and the device does not
        // use it.
        NonNull::new(token).map(|token| unsafe { from_token(token) })
    }

    /// Disables the interrupt of the queue. A hint only.
    pub(crate) fn disable_interrupt(&mut self) {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        unsafe { virtqueue_disable_cb(self.raw.as_ptr()) }
    }

    /// Enables the interrupt again. `false` when used buffers are waiting, which may get none.
    pub(crate) fn enable_interrupt(&mut self) -> bool {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        unsafe { virtqueue_enable_cb(self.raw.as_ptr()) }
    }
}

impl Control<'_> {
    /// Creates a queue for each of `handlers`. Their interrupts call the handlers. May sleep.
    ///
    /// `EINVAL` for more than [`MAX_QUEUES`], `EBUSY` while there are queues, `ENODEV` while the
    /// driver is being unbound.
    pub(crate) fn create_queues<C: Chain, H: QueueHandler>(
        &mut self,
        handlers: &[Arc<H>],
    ) -> Result<KVec<VirtQueue<C>>> {
        let count = handlers.len();
        if count == 0 || count > MAX_QUEUES {
            return Err(EINVAL);
        }
        if self.progress.queues > 0 {
            return Err(EBUSY);
        }
        if self.progress.is_gone {
            return Err(ENODEV);
        }
        let mut raw: KVec<*mut virtqueue> = KVec::new();
        raw.extend_with(count, ptr::null_mut(), GFP_KERNEL)?;
        let mut info = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            info.push(
                virtqueue_info {
                    name: c"requests".as_ptr().cast(),
                    callback: Some(Device::on_used::<H>),
                    ctx: false,
                },
                GFP_KERNEL,
            )?;
        }
        let mut queues = KVec::with_capacity(count, GFP_KERNEL)?;
        let private = self.device.private;
        // INVARIANT: Handlers, callbacks and `drop_handler` are all for `H`.
        for (slot, handler) in private.slots.iter().zip(handlers) {
            let share = Arc::into_raw(handler.clone()).cast_mut().cast();
            slot.handler.store(share, Release);
        }
        self.progress.drop_handler = Some(drop_handler::<H>);
        // SAFETY: Both arrays have `count` elements; the names are static.
        let created = kernel::error::to_result(unsafe {
            vdma_virtio_find_vqs(
                self.device.raw(),
                count as u32,
                raw.as_mut_ptr(),
                info.as_mut_ptr(),
            )
        });
        if let Err(error) = created {
            self.drop_handlers();
            return Err(error);
        }
        self.progress.queues = count;
        for (slot, queue) in private.slots.iter().zip(raw) {
            let queue = NonNull::new(queue).ok_or(EINVAL)?;
            // SAFETY: The call above filled in valid queues, each of which is wrapped once. They
            // are deleted by `Stopped::delete_queues` alone, when no wrapper is left.
            let queue = unsafe { VirtQueue::from_raw(queue, private.clone(), slot.into()) };
            queues.push(queue, GFP_KERNEL)?;
        }
        Ok(queues)
    }
}

/// A notification that the device is waiting for.
///
/// # Invariants
///
/// `kicks` of the slot counts this object, so that the queue is neither dropped nor deleted.
#[must_use = "the device may sleep on until it is notified"]
pub(crate) struct Kick {
    raw: NonNull<virtqueue>,
    slot: NonNull<QueueSlot>,
}

impl Kick {
    /// Notifies the device. Any context; costs an exit from the guest.
    #[inline]
    pub(crate) fn send(self) {
        // SAFETY: The queue is there, by the type's invariant; notifying needs no lock.
        unsafe { virtqueue_notify(self.raw.as_ptr()) };
    }
}

impl Drop for Kick {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The queue waits for this object, and has a share in the private part with the
        // slot.
        let kicks: &Atomic<i32> = unsafe { &self.slot.as_ref().kicks };
        let _ = kicks.fetch_sub(1, Release);
    }
}
