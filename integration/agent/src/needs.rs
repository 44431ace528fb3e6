//! The needs of a test: the suites' program lists them, and the harness provides a guest that meets
//! them.

use serde::{Deserialize, Serialize};

/// Exit status of a skipped test; the last line of its output is the reason.
pub const SKIPPED: u8 = 77;

/// Configuration of a guest, as far as programs in it can tell the difference.
///
/// Tests with equal configurations share a guest.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestConfig {
    /// Number of devices, each with its `/dev/vdmaN`.
    pub devices: u32,
    /// Arguments for each device's backend.
    pub device_arguments: Vec<String>,
    /// Parameters for the kernel's command line.
    pub kernel_parameters: Vec<String>,
    /// Devices reach memory through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`), which they always do
    /// on the debug kernel.
    pub dma_api: bool,
    /// Debian packages in addition to those of every guest.
    pub packages: Vec<String>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of processors.
    pub cpus: u32,
    /// The harness reads and writes device memory for programs in the guest ([`call_host`]).
    ///
    /// [`call_host`]: crate::call_host
    pub visible_memory: bool,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            devices: 1,
            device_arguments: Vec::new(),
            kernel_parameters: Vec::new(),
            dma_api: false,
            packages: Vec::new(),
            memory_mib: 1024,
            cpus: 2,
            visible_memory: false,
        }
    }
}

/// What a test needs; built up from [`Needs::default`], a guest with one device and 60 seconds.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Needs {
    /// The guest.
    #[serde(flatten)]
    pub guest: GuestConfig,
    /// The test is skipped where guests are emulated.
    pub kvm: bool,
    /// Seconds after which the test counts as hung.
    pub timeout: u64,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            guest: GuestConfig::default(),
            kvm: false,
            timeout: 60,
        }
    }
}

impl Needs {
    /// Requires this number of devices.
    #[must_use]
    pub fn devices(mut self, devices: u32) -> Self {
        self.guest.devices = devices;
        self
    }

    /// Requires backends with these arguments.
    #[must_use]
    pub fn device_arguments(mut self, arguments: &[&str]) -> Self {
        self.guest.device_arguments = owned(arguments);
        self
    }

    /// Requires these parameters on the kernel's command line.
    #[must_use]
    pub fn kernel_parameters(mut self, parameters: &[&str]) -> Self {
        self.guest.kernel_parameters = owned(parameters);
        self
    }

    /// Requires devices that reach memory through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`).
    #[must_use]
    pub fn dma_api(mut self) -> Self {
        self.guest.dma_api = true;
        self
    }

    /// Requires these Debian packages in the guest.
    #[must_use]
    pub fn packages(mut self, packages: &[&str]) -> Self {
        self.guest.packages = owned(packages);
        self
    }

    /// Requires this much memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.guest.memory_mib = mib;
        self
    }

    /// Requires this number of processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.guest.cpus = cpus;
        self
    }

    /// Requires device memory that the harness can read and write, through
    /// [`call_host`](crate::call_host).
    #[must_use]
    pub fn visible_memory(mut self) -> Self {
        self.guest.visible_memory = true;
        self
    }

    /// Requires hardware virtualization.
    #[must_use]
    pub fn kvm(mut self) -> Self {
        self.kvm = true;
        self
    }

    /// Requires this many seconds instead of 60.
    #[must_use]
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }
}

/// A test as the suites' program lists it: it prints a JSON array of these.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ListedTest {
    /// `SUITE::TEST`.
    pub name: String,
    /// What it needs.
    pub needs: Needs,
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}
