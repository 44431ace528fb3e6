// SPDX-License-Identifier: GPL-2.0

//! Work that completions, which run in interrupt context, leave to a task, because it sleeps.
//!
//! Requests whose pages have to be marked dirty again: marking takes the folio lock. So pages are
//! marked before the request starts; only those that writeback has cleaned in the meantime come here
//! (the way of `bio_check_pages_dirty` in `block/bio.c`).
//!
//! Buffers whose last user was a request: letting them go takes the folio lock, and that of the address
//! space that they are charged to.

use core::{mem::offset_of, ptr};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc, UniqueArc,
        atomic::{Acquire, Atomic, Full, Release},
    },
    types::Opaque,
};

use crate::{
    io::request::Request,
    linux::{
        slab::SlabBox,
        spinlock::{IrqSpinLock, new_irq_spinlock},
    },
    operations::buffer::Buffer,
};

/// What waits, in lists that need no memory of their own.
struct Waiting {
    requests: Option<SlabBox<Request>>,
    buffers: Option<Pin<UniqueArc<Buffer>>>,
}

#[pin_data]
#[repr(C)]
struct Inner {
    #[pin]
    work: Opaque<bindings::work_struct>,
    #[pin]
    waiting: IrqSpinLock<Waiting>,
}

/// The worker, while there is one.
static INNER: Atomic<*mut Inner> = Atomic::new(ptr::null_mut());

/// Keeps the worker in existence. Dropped after every queue is gone.
pub(crate) struct Worker(Pin<KBox<Inner>>);

// SAFETY: The work item may be queued and flushed from any task.
unsafe impl Send for Worker {}
// SAFETY: Nothing can be done with a shared reference.
unsafe impl Sync for Worker {}

impl Worker {
    pub(crate) fn new() -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                // SAFETY: `slot` is valid for writes, pinned, and flushed before it is freed.
                work <- Opaque::ffi_init(|slot: *mut bindings::work_struct| unsafe {
                    bindings::init_work_with_key(
                        slot,
                        Some(run),
                        false,
                        c"vdma_deferred".as_ptr().cast(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                }),
                waiting <- new_irq_spinlock!(
                    Waiting { requests: None, buffers: None },
                    "vdma_deferred"
                ),
            }),
            GFP_KERNEL,
        )?;
        INNER.store(ptr::from_ref(&*inner).cast_mut(), Release);
        Ok(Self(inner))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        INNER.xchg(ptr::null_mut(), Full);
        // SAFETY: The work item is initialized. No request is left that could queue it again: the
        // driver is unregistered first.
        unsafe { bindings::flush_work(self.0.work.get()) };
    }
}

fn inner() -> Option<&'static Inner> {
    // SAFETY: Requests, the only ones that defer work, exist only while a driver is registered, and
    // then there is a worker.
    unsafe { INNER.load(Acquire).as_ref() }
}

fn schedule(inner: &Inner) {
    // SAFETY: The work item is initialized and stays until it is flushed.
    unsafe {
        bindings::queue_work_on(
            bindings::wq_misc_consts_WORK_CPU_UNBOUND as i32,
            bindings::system_dfl_wq,
            inner.work.get(),
        )
    };
}

/// Completes `request` from process context, once its pages are dirty again. Any context.
pub(crate) fn redirty(mut request: SlabBox<Request>) {
    let Some(inner) = inner() else {
        return request.abandon(ENODEV);
    };
    {
        let mut waiting = inner.waiting.lock();
        request.set_next(waiting.requests.take());
        waiting.requests = Some(request);
    }
    schedule(inner);
}

/// Lets go of `buffer`; if nobody else has it, its memory goes, in process context. Any context.
pub(crate) fn release(buffer: Arc<Buffer>) {
    let Some(mut buffer) = Arc::into_unique_or_drop(buffer) else {
        return;
    };
    let Some(inner) = inner() else {
        return;
    };
    {
        let mut waiting = inner.waiting.lock();
        buffer.as_mut().set_next(waiting.buffers.take());
        waiting.buffers = Some(buffer);
    }
    schedule(inner);
}

/// Runs in process context.
unsafe extern "C" fn run(work: *mut bindings::work_struct) {
    const { assert!(offset_of!(Inner, work) == 0) };
    // SAFETY: The work item is the first field of an `Inner`, which lives until it is flushed.
    let inner = unsafe { &*work.cast::<Inner>() };
    let (mut requests, mut buffers) = {
        let mut waiting = inner.waiting.lock();
        (waiting.requests.take(), waiting.buffers.take())
    };
    while let Some(mut request) = requests {
        requests = request.take_next();
        request.redirty_and_finish();
    }
    while let Some(mut buffer) = buffers {
        buffers = buffer.as_mut().take_next();
    }
}
