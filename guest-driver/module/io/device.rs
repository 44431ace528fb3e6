// SPDX-License-Identifier: GPL-2.0

//! A vdma device as open files see it: its queues, its limits, its memory.

use kernel::{page::PAGE_SIZE, prelude::*, sync::Arc};

use crate::{
    io::{
        busy_poll::BusyPoll,
        queue::{self, Queues},
    },
    linux::{
        bounce::Reach,
        chardev::{Poll, Readiness},
        compat,
        vma::{Fault, FaultResult, Mappable, NewMapping, SharedSpace},
    },
    memory::{bar::Bar, explain},
    observe::{DeviceObserver, Observer},
    protocol::DeviceInfo,
};

/// Limits of the data of one request.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_bytes: usize,
    /// Most scatter-gather entries.
    pub(crate) max_segments: usize,
    /// Most bytes of an entry.
    pub(crate) max_segment_size: usize,
}

impl Limits {
    /// Limits for data that fit into `max_segments` entries whichever pages they are in.
    pub(crate) fn for_any_pages(self, max_segments: usize) -> Self {
        // Data that do not begin at a page boundary touch one page more than they have bytes for.
        let bytes = (max_segments.saturating_sub(1) * PAGE_SIZE).min(self.max_bytes);
        Self {
            max_bytes: bytes.max(1),
            max_segments: max_segments.max(1),
            ..self
        }
    }
}

/// A vdma device. Open files keep it; when the device is gone every operation on it fails with
/// `ENODEV`.
#[pin_data]
pub(crate) struct Vdma {
    pub(super) queues: Arc<Queues>,
    pub(super) info: DeviceInfo,
    pub(super) limits: Limits,
    pub(super) reach: Reach,
    pub(super) bar: Option<Pin<KBox<Bar>>>,
    /// Of the driver's own requests.
    pub(super) observer: Arc<Observer>,
    pub(super) busy_poll: BusyPoll,
    /// Parameters of the module, which do not change once it is loaded.
    pub(super) inline_bytes: usize,
    pub(super) verifies: bool,
    space: Arc<SharedSpace>,
}

impl Vdma {
    /// A device whose queues are in use.
    pub(crate) fn new(
        queues: Arc<Queues>,
        info: DeviceInfo,
        limits: Limits,
        reach: Reach,
        bar: Option<Pin<KBox<Bar>>>,
        observer: Arc<Observer>,
    ) -> Result<Arc<Self>> {
        let inline_bytes = compat::number(crate::module_parameters::inline_bytes.value());
        let verifies = compat::number(crate::module_parameters::verify.value()) != 0;
        let space = Arc::pin_init(SharedSpace::new(), GFP_KERNEL)?;
        Arc::pin_init(
            try_pin_init!(Self {
                queues,
                info,
                limits,
                reach,
                bar,
                observer,
                inline_bytes: inline_bytes as usize,
                verifies,
                busy_poll: BusyPoll::new(compat::number(crate::module_parameters::poll_us.value())),
                space,
            }? Error),
            GFP_KERNEL,
        )
    }

    pub(crate) fn memory_size(&self) -> u64 {
        self.info.memory_size
    }

    pub(crate) fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// What is observed of the device.
    pub(crate) fn device_observer(&self) -> &Arc<DeviceObserver> {
        &self.observer.device
    }

    /// What is observed of the driver's own requests.
    pub(crate) fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    pub(crate) fn space(&self) -> &Arc<SharedSpace> {
        &self.space
    }

    /// Refuses requests for good, and takes device memory out of every mapping. May sleep.
    pub(crate) fn mark_dead(&self) {
        for queue in &*self.queues {
            queue.close();
        }
        self.space.close();
        if let Some(bar) = &self.bar {
            bar.close();
        }
    }

    /// Whether reads and writes can be submitted without waiting.
    pub(crate) fn poll(&self, poll: &Poll<'_>) -> Readiness {
        // One for all queues: io_uring waits at two places at most, and libaio at one.
        if let Some(queue) = self.queues.first() {
            poll.wait_for(queue.poll_waiters());
        }
        let Ok(queue) = queue::of_current_cpu(&self.queues) else {
            return Readiness::Dead;
        };
        if queue.is_closed() {
            Readiness::Dead
        } else if queue.poll_free_descriptors() {
            Readiness::Ready
        } else {
            Readiness::Busy
        }
    }

    /// See [`explain::explain`]. May sleep.
    pub(crate) fn explain(&self, argument: usize) -> Result<isize> {
        explain::explain(
            argument,
            queue::of_current_cpu(&self.queues)?,
            self.reach,
            self.limits.max_segment_size,
        )
    }

    /// Maps device memory into user space; `ENODEV` when the device exposes none.
    pub(crate) fn map<T: Mappable>(&self, mapping: NewMapping<'_, T>, mode: u32) -> Result {
        let bar = self.bar.as_ref().ok_or(ENODEV)?;
        self.space
            .while_open(|| bar.map(mapping, mode))
            .ok_or(ENODEV)?
    }

    /// Maps what a fault asks for, while the device is there.
    pub(crate) fn fault<'a>(&self, fault: Fault<'a>) -> FaultResult<'a> {
        let Some(bar) = &self.bar else {
            return FaultResult::BUS_ERROR;
        };
        self.space
            .while_open(|| bar.fault(fault))
            .unwrap_or(FaultResult::BUS_ERROR)
    }

    /// Counts a mapping that was made (`true`) or is gone.
    pub(crate) fn count_mapping(&self, made: bool) {
        if let Some(bar) = &self.bar {
            bar.count_mapping(made);
        }
    }

    /// Chooses the cache attribute of device memory; `ENODEV` when the device exposes none. May
    /// sleep.
    pub(crate) fn set_cache(&self, cache: u32) -> Result {
        self.bar.as_ref().ok_or(ENODEV)?.set_cache(cache)
    }
}
