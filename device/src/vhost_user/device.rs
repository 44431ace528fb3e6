//! A device, independent of the front end that is connected.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use crate::{
    fault::{FaultKind, FaultSpec},
    log_limit::LogLimit,
    memory::DeviceMemory,
    metrics::DeviceMetrics,
    sandbox::SeccompMode,
};

/// Settings that are constant for the life of a device.
#[derive(Clone, Debug)]
pub struct DeviceSettings {
    /// Request queues, 1 to 16.
    pub num_queues: u16,
    /// Largest size of each: a power of two up to 1024.
    pub queue_size: u16,
    /// Threads that run the queues, 1 to `num_queues`.
    pub threads: u16,
    /// Stop serving after the first front end.
    pub once: bool,
    /// Zero device memory when a front end disconnects.
    pub scrub: bool,
    /// Offer `VIRTIO_F_ACCESS_PLATFORM`.
    pub access_platform: bool,
    /// Longest time to busy-poll an idle ring before sleeping.
    pub poll: Duration,
    /// What happens on unexpected system calls of the device's threads.
    pub seccomp: SeccompMode,
    /// Faults to inject.
    pub faults: Vec<FaultSpec>,
}

/// A device.
#[derive(Debug)]
pub struct Device {
    name: String,
    settings: DeviceSettings,
    memory: Arc<DeviceMemory>,
    metrics: DeviceMetrics,
    log_limit: LogLimit,
    bar_threads: AtomicUsize,
}

impl Device {
    /// A device; `name` is for log lines.
    #[must_use]
    pub fn new(name: String, settings: DeviceSettings, memory: Arc<DeviceMemory>) -> Self {
        Self {
            name,
            metrics: DeviceMetrics::new(settings.num_queues, &FaultKind::NAMES),
            settings,
            memory,
            log_limit: LogLimit::default(),
            bar_threads: AtomicUsize::new(0),
        }
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> &DeviceMetrics {
        &self.metrics
    }

    /// Number of threads that wait for a front end's reply about the BAR, those of disconnected
    /// front ends included.
    pub(super) fn bar_threads(&self) -> &AtomicUsize {
        &self.bar_threads
    }

    /// Limits the log lines that guests can cause.
    pub(super) fn log_limit(&self) -> &LogLimit {
        &self.log_limit
    }

    /// The name in log lines.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings chosen at start-up.
    #[must_use]
    pub fn settings(&self) -> &DeviceSettings {
        &self.settings
    }

    /// The memory behind the BAR.
    #[must_use]
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }
}
