// SPDX-License-Identifier: GPL-2.0

//! Work that is left to a task, because it sleeps: `struct work_struct`, `struct delayed_work`.

use core::{mem, mem::offset_of, ptr};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full},
        rcu,
    },
    types::Opaque,
};

use crate::linux::{
    list::{Linked, Stack},
    spinlock::{IrqSpinLock, new_irq_spinlock},
};

/// What interrupts leave to a task.
pub(crate) trait Deferred: Linked + Send + Unpin + 'static {
    /// Called in process context. May sleep.
    fn run(self);
}

#[pin_data]
#[repr(C)]
struct Inner<T: Deferred> {
    #[pin]
    work: Opaque<bindings::work_struct>,
    #[pin]
    waiting: IrqSpinLock<Stack<T>>,
}

/// A queue of items that wait to be run, in a `static`. It takes items while there is a
/// [`DeferredWorker`].
///
/// # Invariants
///
/// `inner` is null, or points at the `Inner` of a worker. It is read, and used, in RCU read-side critical
/// sections only.
pub(crate) struct DeferredQueue<T: Deferred> {
    inner: Atomic<*mut Inner<T>>,
}

impl<T: Deferred> DeferredQueue<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: Null.
        Self {
            inner: Atomic::new(ptr::null_mut()),
        }
    }

    /// Has `item` run soon, or gives it back where there is no worker. Any context.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let _guard = rcu::read_lock();
        // SAFETY: Null, or a worker's, by the type's invariant. The worker frees it only after the critical
        // sections that may have read it.
        let Some(inner) = (unsafe { self.inner.load(Acquire).as_ref() }) else {
            return Err(item);
        };
        inner.waiting.lock().push(item);
        // SAFETY: The work item is initialized. The worker waits for it before it is freed, and this
        // critical section comes before that wait.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as i32,
                bindings::system_dfl_wq,
                inner.work.get(),
            )
        };
        Ok(())
    }
}

/// Runs the items of a queue. Dropping it runs what is left, and waits for that; may sleep.
///
/// # Invariants
///
/// `queue` points at `inner`, until this is dropped.
pub(crate) struct DeferredWorker<T: Deferred> {
    queue: &'static DeferredQueue<T>,
    inner: Pin<KBox<Inner<T>>>,
}

// SAFETY: The work item may be queued and flushed by any task; the list is under its lock.
unsafe impl<T: Deferred> Send for DeferredWorker<T> {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl<T: Deferred> Sync for DeferredWorker<T> {}

impl<T: Deferred> DeferredWorker<T> {
    /// The worker of `queue`: `EBUSY` if it has one. May sleep.
    pub(crate) fn new(queue: &'static DeferredQueue<T>) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                // SAFETY: `slot` is valid for writes and pinned; the item is flushed before it is freed.
                work <- Opaque::ffi_init(|slot: *mut bindings::work_struct| unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(Self::run),
                        false,
                        c"vdma_deferred".as_ptr().cast(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }),
                waiting <- new_irq_spinlock!(Stack::new(), "vdma_deferred"),
            }),
            GFP_KERNEL,
        )?;
        let raw = ptr::from_ref(&*inner).cast_mut();
        // INVARIANT: `inner` is the worker's, which stays in place: it is pinned.
        match queue.inner.cmpxchg(ptr::null_mut(), raw, Full) {
            Ok(_) => Ok(Self { queue, inner }),
            Err(_) => Err(EBUSY),
        }
    }

    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        const { assert!(offset_of!(Inner<T>, work) == 0) };
        // SAFETY: The work item is the first field of an `Inner`, which is not freed while the item runs.
        let inner = unsafe { &*work.cast::<Inner<T>>() };
        let mut waiting = mem::replace(&mut *inner.waiting.lock(), Stack::new());
        while let Some(item) = waiting.pop() {
            item.run();
        }
    }
}

impl<T: Deferred> Drop for DeferredWorker<T> {
    fn drop(&mut self) {
        // INVARIANT: Null again, before `inner` goes.
        self.queue.inner.xchg(ptr::null_mut(), Full);
        // SAFETY: No precondition beyond a context that may sleep.
        unsafe { bindings::synchronize_rcu() };
        // SAFETY: The item is initialized, and is not queued any more: that is done in critical sections that
        // have seen the pointer, and they are over.
        unsafe { bindings::flush_work(self.inner.work.get()) };
    }
}
