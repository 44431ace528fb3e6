// SPDX-License-Identifier: GPL-2.0

//! A periodic check in process context.

use kernel::{prelude::*, sync::Arc};

use crate::linux::{
    spinlock::{IrqSpinLock, new_irq_spinlock},
    system,
    workqueue::{DelayedTask, DelayedWork},
};

/// What a watchdog checks.
pub(crate) trait WatchdogTarget: Send + Sync {
    /// Called every period, and soon after [`Watchdog::alarm`]. May sleep.
    fn check(&self);
}

/// What the work item of a watchdog does.
#[pin_data]
struct Check {
    period_ms: u32,
    #[pin]
    target: IrqSpinLock<Option<Arc<dyn WatchdogTarget>>>,
}

impl DelayedTask for Check {
    fn run(work: &DelayedWork<Self>) {
        let target = work.task().target.lock().clone();
        if let Some(target) = target {
            // A device that the kernel shuts down looks like one that has failed.
            if !system::is_ending() {
                target.check();
            }
            schedule(work);
        }
    }
}

/// Has the next periodic check run.
fn schedule(work: &DelayedWork<Check>) {
    let period_ms = work.task().period_ms;
    if period_ms > 0 {
        work.schedule(period_ms);
    }
}

/// A watchdog. It checks a target from [`Watchdog::watch`] until [`WatchdogGuard`] is dropped.
#[pin_data]
pub(crate) struct Watchdog {
    #[pin]
    work: DelayedWork<Check>,
}

impl Watchdog {
    /// A watchdog that checks every `period_ms` milliseconds, or only when alarmed if that is 0.
    pub(crate) fn new(period_ms: u32) -> Result<Arc<Self>> {
        let check = try_pin_init!(Check {
            period_ms,
            target <- new_irq_spinlock!(None, "vdma_watchdog"),
        }? Error);
        Arc::pin_init(
            try_pin_init!(Self { work <- DelayedWork::new(check) }? Error),
            GFP_KERNEL,
        )
    }

    /// Begins to check `target`. Once.
    pub(crate) fn watch(self: Arc<Self>, target: Arc<dyn WatchdogTarget>) -> WatchdogGuard {
        *self.work.task().target.lock() = Some(target);
        schedule(&self.work);
        WatchdogGuard(self)
    }

    /// Has the check run as soon as it can. Any context.
    pub(crate) fn alarm(&self) {
        let target = self.work.task().target.lock();
        if target.is_some() {
            self.work.schedule(0);
        }
    }
}

/// Keeps a watchdog at work. Dropping it waits for a check that runs; may sleep.
pub(crate) struct WatchdogGuard(Arc<Watchdog>);

impl Drop for WatchdogGuard {
    fn drop(&mut self) {
        let target = self.0.work.task().target.lock().take();
        self.0.work.disable();
        drop(target);
    }
}
