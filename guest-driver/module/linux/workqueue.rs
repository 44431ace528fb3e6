// SPDX-License-Identifier: GPL-2.0

//! Work that is left to a task, because it sleeps: `struct work_struct`, `struct delayed_work`.

use core::{mem, mem::offset_of, ptr};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Release},
        rcu,
    },
    time::msecs_to_jiffies,
    types::Opaque,
};

use crate::linux::{
    bindings::{vdma_init_delayed_work, vdma_schedule_delayed_work},
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
/// `inner` is null, or points at the `Inner` of a worker. It is read, and used, in RCU read-side
/// critical sections only.
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
        // SAFETY: Null, or a worker's, by the type's invariant. The worker frees it only after the
        // critical sections that may have read it.
        let Some(inner) = (unsafe { self.inner.load(Acquire).as_ref() }) else {
            return Err(item);
        };
        inner.waiting.lock().push(item);
        // SAFETY: The work item is initialized. The worker waits for it before it is freed, and
        // this critical section comes before that wait.
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
                // SAFETY: `slot` is valid for writes and pinned; the item is flushed before it is
                // freed.
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
        // SAFETY: The work item is the first field of an `Inner`, which is not freed while the item
        // runs.
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
        // SAFETY: The item is initialized, and is not queued any more: that is done in critical
        // sections that have seen the pointer, and they are over.
        unsafe { bindings::flush_work(self.inner.work.get()) };
    }
}

/// What a [`DelayedWork`] does.
pub(crate) trait DelayedTask: Send + Sync + Sized + 'static {
    /// Called in process context. May sleep.
    fn run(work: &DelayedWork<Self>);
}

/// A work item that runs after a delay, with the state that it works on.
///
/// # Invariants
///
/// The item is initialized. It is disabled, with nothing left that runs, before this object goes.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct DelayedWork<T: DelayedTask> {
    #[pin]
    raw: Opaque<bindings::delayed_work>,
    /// Not 0 once the item is disabled for good.
    is_disabled: Atomic<u32>,
    #[pin]
    task: T,
}

// SAFETY: The work item may be queued, and disabled, from any task.
unsafe impl<T: DelayedTask> Send for DelayedWork<T> {}
// SAFETY: The work item may be queued by several tasks at once; the task is `Sync`.
unsafe impl<T: DelayedTask> Sync for DelayedWork<T> {}

impl<T: DelayedTask> DelayedWork<T> {
    /// A work item that is not queued.
    pub(crate) fn new(task: impl PinInit<T, Error>) -> impl PinInit<Self, Error> {
        // INVARIANT: The item is initialized here, and disabled by `drop`.
        try_pin_init!(Self {
            // SAFETY: `slot` is valid for writes and pinned; the item is disabled before it goes.
            raw <- Opaque::ffi_init(|slot| unsafe {
                vdma_init_delayed_work(slot, Some(Self::run))
            }),
            is_disabled: Atomic::new(0),
            task <- task,
        }? Error)
    }

    /// The state.
    pub(crate) fn task(&self) -> &T {
        &self.task
    }

    /// Has the item run after `delay_ms` milliseconds from now, whenever it was to run before. Any
    /// context.
    pub(crate) fn schedule(&self, delay_ms: u32) {
        // SAFETY: The item is initialized, by the type's invariant; one that is disabled is not
        // queued.
        unsafe { vdma_schedule_delayed_work(self.raw.get(), msecs_to_jiffies(delay_ms)) };
    }

    /// Keeps the item from running any more, and waits until it does not. May sleep.
    pub(crate) fn disable(&self) {
        // SAFETY: The item is initialized, by the type's invariant. Disabling it also keeps one
        // that runs from queueing it again.
        unsafe { bindings::disable_delayed_work_sync(self.raw.get()) };
        self.is_disabled.store(1, Release);
    }

    unsafe extern "C" fn run(work: *mut bindings::work_struct) {
        const { assert!(offset_of!(Self, raw) == 0) };
        const { assert!(offset_of!(bindings::delayed_work, work) == 0) };
        // SAFETY: The item is the first field of a delayed item, which is the first field of this
        // type; the object does not go while the item runs, by its invariant.
        T::run(unsafe { &*work.cast::<Self>() });
    }
}

#[pinned_drop]
impl<T: DelayedTask> PinnedDrop for DelayedWork<T> {
    fn drop(self: Pin<&mut Self>) {
        // Often disabled before, and the last owner may not be allowed to sleep.
        if self.is_disabled.load(Acquire) == 0 {
            self.disable();
        }
    }
}
