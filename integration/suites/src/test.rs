//! What a test is, and what it needs of the guest that it runs in.

use serde::Serialize;

/// A test: succeeds by returning, fails by returning an error or by panicking.
pub(crate) struct Test {
    /// Name within its suite.
    pub(crate) name: &'static str,
    /// The test itself, in a process of its own.
    pub(crate) run: fn() -> anyhow::Result<()>,
    /// The guest that it needs.
    pub(crate) needs: Needs,
}

/// The guest that a test needs. Tests with the same needs share a guest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Needs {
    /// Devices, and as many `/dev/vdmaN`.
    pub(crate) devices: u32,
    /// Arguments for each device's backend.
    pub(crate) device_arguments: &'static [&'static str],
    /// Parameters for the kernel's command line.
    pub(crate) kernel_parameters: &'static [&'static str],
    /// Devices reach memory through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`), as on the debug kernel.
    pub(crate) dma_api: bool,
    /// Debian packages beside those that every guest has.
    pub(crate) packages: &'static [&'static str],
    /// Memory of the guest in MiB.
    pub(crate) memory_mib: u64,
    /// Processors of the guest.
    pub(crate) cpus: u32,
    /// The test looks at device memory from the host's side.
    pub(crate) visible_memory: bool,
    /// Emulation is not enough.
    pub(crate) kvm: bool,
    /// Seconds after which the test counts as hung.
    pub(crate) timeout: u64,
}

impl Test {
    /// A test in a guest with one device.
    pub(crate) const fn new(name: &'static str, run: fn() -> anyhow::Result<()>) -> Self {
        Self {
            name,
            run,
            needs: Needs {
                devices: 1,
                device_arguments: &[],
                kernel_parameters: &[],
                dma_api: false,
                packages: &[],
                memory_mib: 1024,
                cpus: 2,
                visible_memory: false,
                kvm: false,
                timeout: 60,
            },
        }
    }

    /// Needs this many devices.
    pub(crate) const fn devices(mut self, devices: u32) -> Self {
        self.needs.devices = devices;
        self
    }

    /// Needs device memory that the harness can read and write, through `guest_agent::call_host`.
    pub(crate) const fn visible_memory(mut self) -> Self {
        self.needs.visible_memory = true;
        self
    }
}

/// Builders that no test uses yet would be dead code; they are part of what tests can say.
#[allow(dead_code)]
impl Test {
    /// Needs backends with these arguments.
    pub(crate) const fn device_arguments(mut self, arguments: &'static [&'static str]) -> Self {
        self.needs.device_arguments = arguments;
        self
    }

    /// Needs these parameters on the kernel's command line.
    pub(crate) const fn kernel_parameters(mut self, parameters: &'static [&'static str]) -> Self {
        self.needs.kernel_parameters = parameters;
        self
    }

    /// Needs devices that reach memory through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`).
    pub(crate) const fn dma_api(mut self) -> Self {
        self.needs.dma_api = true;
        self
    }

    /// Needs these Debian packages in the guest.
    pub(crate) const fn packages(mut self, packages: &'static [&'static str]) -> Self {
        self.needs.packages = packages;
        self
    }

    /// Needs this much memory, in MiB.
    pub(crate) const fn memory_mib(mut self, mib: u64) -> Self {
        self.needs.memory_mib = mib;
        self
    }

    /// Needs this many processors.
    pub(crate) const fn cpus(mut self, cpus: u32) -> Self {
        self.needs.cpus = cpus;
        self
    }

    /// Needs real virtualization.
    pub(crate) const fn kvm(mut self) -> Self {
        self.needs.kvm = true;
        self
    }

    /// May take this many seconds (60 unless it says so).
    pub(crate) const fn timeout(mut self, seconds: u64) -> Self {
        self.needs.timeout = seconds;
        self
    }
}

/// The error of a test that cannot run here; it counts as skipped, with this reason.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}
