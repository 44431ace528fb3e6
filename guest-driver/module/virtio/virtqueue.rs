// SPDX-License-Identifier: GPL-2.0

//! Virtqueues that own the buffers in them.

use core::{
    marker::PhantomData,
    ptr::{self, NonNull},
};

use kernel::{bindings, ffi::c_void, page::PAGE_SIZE, prelude::*};

use crate::linux::{
    bindings::{
        vdma_dma_map_page, vdma_virtqueue_free, vdma_virtqueue_spread_interrupts, virtqueue,
        virtqueue_add_sgs, virtqueue_detach_unused_buf, virtqueue_disable_cb, virtqueue_enable_cb,
        virtqueue_get_buf, virtqueue_get_vring_size, virtqueue_is_broken, virtqueue_kick_prepare,
        virtqueue_notify,
    },
    page::Page,
};

/// The scatter-gather lists of one buffer: first those that the device reads, then those that it
/// writes.
pub(crate) struct SgLists {
    lists: [*mut bindings::scatterlist; Self::MAX],
    readable: usize,
    writable: usize,
}

impl SgLists {
    const MAX: usize = 4;

    pub(crate) fn new() -> Self {
        Self {
            lists: [ptr::null_mut(); Self::MAX],
            readable: 0,
            writable: 0,
        }
    }

    fn push(&mut self, list: *mut bindings::scatterlist) {
        self.lists[self.readable + self.writable] = list;
    }

    /// Adds a list that the device reads, if it is not null. To be called before any
    /// [`SgLists::push_writable`].
    pub(crate) fn push_readable(&mut self, list: *mut bindings::scatterlist) {
        if !list.is_null() {
            self.push(list);
            self.readable += 1;
        }
    }

    /// Adds a list that the device writes, if it is not null.
    pub(crate) fn push_writable(&mut self, list: *mut bindings::scatterlist) {
        if !list.is_null() {
            self.push(list);
            self.writable += 1;
        }
    }
}

/// What can be put into a virtqueue.
///
/// # Safety
///
/// The lists of [`Buffer::sg_lists`], and the memory that they name, stay valid and in place, and are
/// touched by nobody, from `into_raw` to `from_raw`.
pub(crate) unsafe trait Buffer: Sized {
    /// The lists to hand to the device.
    fn sg_lists(&mut self) -> SgLists;

    /// Gives the buffer away as a pointer.
    fn into_raw(self) -> NonNull<c_void>;

    /// Takes the buffer back.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`Buffer::into_raw`] and is taken back once.
    unsafe fn from_raw(raw: NonNull<c_void>) -> Self;
}

/// A virtqueue whose buffers are `B`s. A buffer in the queue belongs to the queue.
///
/// # Invariants
///
/// `raw` is a queue that is not deleted; every token in it comes from `B::into_raw`.
pub(crate) struct VirtQueue<B: Buffer> {
    raw: NonNull<virtqueue>,
    _buffers: PhantomData<B>,
}

// SAFETY: Queues may be used from any CPU, by one at a time, which `&mut self` ensures.
unsafe impl<B: Buffer + Send> Send for VirtQueue<B> {}

impl<B: Buffer> VirtQueue<B> {
    /// # Safety
    ///
    /// `raw` is a valid queue with no buffer in it, and is wrapped once.
    pub(super) unsafe fn from_raw(raw: *mut virtqueue) -> Self {
        // SAFETY: A valid queue is not null.
        Self {
            raw: unsafe { NonNull::new_unchecked(raw) },
            _buffers: PhantomData,
        }
    }

    /// The number of the queue.
    pub(super) fn index(&self) -> usize {
        // SAFETY: Valid by the type's invariant; the number does not change.
        unsafe { (*self.raw.as_ptr()).index as usize }
    }

    /// Descriptors in the ring.
    pub(crate) fn size(&self) -> u32 {
        // SAFETY: Valid by the type's invariant.
        unsafe { virtqueue_get_vring_size(self.raw.as_ptr()) }
    }

    /// Asks for the interrupts of this queue, one of `queues`, on each `queues`th CPU. May sleep.
    pub(crate) fn spread_interrupts(&mut self, queues: usize) {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_virtqueue_spread_interrupts(self.raw.as_ptr(), queues as u32) }
    }

    /// Descriptors that are free.
    pub(crate) fn free(&self) -> u32 {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_virtqueue_free(self.raw.as_ptr()) }
    }

    /// What the device would be told as the address of `length` bytes at `offset` of `page`: `None`
    /// when it cannot be told any, or the page does not have the bytes.
    pub(crate) fn bus_address(&self, page: Page<'_>, offset: usize, length: usize) -> Option<u64> {
        if offset.checked_add(length).is_none_or(|end| end > PAGE_SIZE) {
            return None;
        }
        // SAFETY: The page is held while it is borrowed, has the bytes, and the queue is valid by the type's
        // invariant.
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

    /// Adds a buffer. Never sleeps. The device may see it at once.
    ///
    /// The buffer comes back with `ENOSPC` when the ring is full, `ENOMEM` or `EIO` otherwise.
    pub(crate) fn add(&mut self, mut buffer: B) -> Result<(), (Error, B)> {
        let mut sg = buffer.sg_lists();
        let token = buffer.into_raw();
        // SAFETY: The lists stay valid while the buffer is in the queue, by the contract of `Buffer`;
        // `&mut self` serializes the operations on the queue.
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
        result.map_err(|error| (error, unsafe { B::from_raw(token) }))
    }

    /// Publishes what was added; returns whether the device wants to be notified of it.
    pub(crate) fn prepare_kick(&mut self) -> Option<Kick> {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        unsafe { virtqueue_kick_prepare(self.raw.as_ptr()) }.then_some(Kick(self.raw))
    }

    /// Takes the next buffer that the device has used, and the bytes that it says to have written.
    ///
    /// Virtio has checked the id: a wrong one breaks the queue, and nothing is returned any more.
    pub(crate) fn pop(&mut self) -> Option<(B, u32)> {
        let mut written = 0;
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        let token = unsafe { virtqueue_get_buf(self.raw.as_ptr(), &mut written) };
        // SAFETY: The token comes from `add`, and the queue has given it up.
        NonNull::new(token).map(|token| (unsafe { B::from_raw(token) }, written))
    }

    /// Takes back a buffer that the device has not used. Only after a reset.
    pub(crate) fn detach_unused(&mut self) -> Option<B> {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        let token = unsafe { virtqueue_detach_unused_buf(self.raw.as_ptr()) };
        // SAFETY: The token comes from `add`, and the queue has given it up.
        NonNull::new(token).map(|token| unsafe { B::from_raw(token) })
    }

    /// Asks for no more interrupts. A hint only.
    pub(crate) fn disable_interrupt(&mut self) {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        unsafe { virtqueue_disable_cb(self.raw.as_ptr()) }
    }

    /// Asks for interrupts again. `false` when used buffers are waiting, which may get none.
    pub(crate) fn enable_interrupt(&mut self) -> bool {
        // SAFETY: Valid by the type's invariant; serialized by `&mut self`.
        unsafe { virtqueue_enable_cb(self.raw.as_ptr()) }
    }
}

/// A notification that the device is waiting for.
#[must_use = "the device may sleep on until it is notified"]
pub(crate) struct Kick(NonNull<virtqueue>);

impl Kick {
    /// Notifies the device. Any context; costs an exit from the guest.
    ///
    /// # Safety
    ///
    /// The queue is not deleted yet.
    pub(crate) unsafe fn send(self) {
        // SAFETY: The caller vouches for it; notifying needs no lock.
        unsafe { virtqueue_notify(self.0.as_ptr()) };
    }
}
