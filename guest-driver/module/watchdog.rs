// SPDX-License-Identifier: GPL-2.0

//! A periodic check in process context: `struct delayed_work`, queued again by its own callback.

use core::mem::offset_of;

use kernel::{bindings, prelude::*, sync::Arc, time::msecs_to_jiffies, types::Opaque};

use crate::linux::{
    bindings::{vdma_init_delayed_work, vdma_schedule_delayed_work, vdma_system_is_ending},
    spinlock::{IrqSpinLock, new_irq_spinlock},
};

/// What a watchdog looks after.
pub(crate) trait Ward: Send + Sync {
    /// Called every period, and soon after [`Watchdog::alarm`]. May sleep.
    fn check(&self);
}

/// A watchdog. Bound to its ward by [`Watchdog::watch`] until [`Leash`] is dropped.
#[pin_data]
#[repr(C)]
pub(crate) struct Watchdog {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    period_ms: u32,
    #[pin]
    ward: IrqSpinLock<Option<Arc<dyn Ward>>>,
}

// SAFETY: The work item may be queued from any context; everything else is under the lock.
unsafe impl Send for Watchdog {}
// SAFETY: As above.
unsafe impl Sync for Watchdog {}

impl Watchdog {
    /// A watchdog that checks every `period_ms` milliseconds, or only when alarmed if that is 0.
    pub(crate) fn new(period_ms: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                // SAFETY: `slot` is valid for writes and pinned; while the item can be queued, its
                // `Leash` keeps it in existence.
                work <- Opaque::ffi_init(|slot| unsafe {
                    vdma_init_delayed_work(slot, Some(run))
                }),
                period_ms,
                ward <- new_irq_spinlock!(None, "vdma_watchdog"),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Begins to watch.
    pub(crate) fn watch(self: Arc<Self>, ward: Arc<dyn Ward>) -> Leash {
        *self.ward.lock() = Some(ward);
        self.schedule();
        Leash(self)
    }

    fn schedule(&self) {
        if self.period_ms > 0 {
            // SAFETY: Only called while a ward is there, and so a `Leash`.
            unsafe {
                vdma_schedule_delayed_work(self.work.get(), msecs_to_jiffies(self.period_ms))
            };
        }
    }

    /// Lets the check run as soon as it can. Any context.
    pub(crate) fn alarm(&self) {
        let ward = self.ward.lock();
        if ward.is_some() {
            // SAFETY: There is a ward, and so a `Leash`, which takes the ward away before it waits
            // for the item.
            unsafe { vdma_schedule_delayed_work(self.work.get(), 0) };
        }
    }
}

/// Keeps a watchdog at work. Dropping it waits for a check that runs; may sleep.
pub(crate) struct Leash(Arc<Watchdog>);

impl Drop for Leash {
    fn drop(&mut self) {
        let ward = self.0.ward.lock().take();
        // SAFETY: The item is initialized. Disabling it also keeps a check that runs from queueing it
        // again.
        unsafe { bindings::disable_delayed_work_sync(self.0.work.get()) };
        drop(ward);
    }
}

unsafe extern "C" fn run(work: *mut bindings::work_struct) {
    const { assert!(offset_of!(Watchdog, work) == 0) };
    const { assert!(offset_of!(bindings::delayed_work, work) == 0) };
    // SAFETY: The item is the first field of a delayed item, which is the first field of a watchdog
    // that its `Leash` keeps.
    let watchdog = unsafe { &*work.cast::<Watchdog>() };
    let ward = watchdog.ward.lock().clone();
    if let Some(ward) = ward {
        // A device that the kernel shuts down looks like one that has broken down.
        // SAFETY: No precondition.
        if !unsafe { vdma_system_is_ending() } {
            ward.check();
        }
        watchdog.schedule();
    }
}
