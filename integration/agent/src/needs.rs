//! What a test asks of the guest that it runs in: the guest-side test program states it, the
//! harness provides it.

use serde::{Deserialize, Serialize};

/// Exit status of a test program whose test cannot run in this guest; its last line says why.
pub const SKIPPED: u8 = 77;

/// Configuration of a guest, as far as programs in it can tell the difference.
///
/// Tests that ask for equal guests share one.
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
    /// Debian packages beside those that every guest has.
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
    /// Asks for this number of devices.
    #[must_use]
    pub fn devices(mut self, devices: u32) -> Self {
        self.guest.devices = devices;
        self
    }

    /// Asks for backends with these arguments.
    #[must_use]
    pub fn device_arguments(mut self, arguments: &[&str]) -> Self {
        self.guest.device_arguments = owned(arguments);
        self
    }

    /// Asks for these parameters on the kernel's command line.
    #[must_use]
    pub fn kernel_parameters(mut self, parameters: &[&str]) -> Self {
        self.guest.kernel_parameters = owned(parameters);
        self
    }

    /// Asks for devices that reach memory through the DMA API (`VIRTIO_F_ACCESS_PLATFORM`).
    #[must_use]
    pub fn dma_api(mut self) -> Self {
        self.guest.dma_api = true;
        self
    }

    /// Asks for these Debian packages in the guest.
    #[must_use]
    pub fn packages(mut self, packages: &[&str]) -> Self {
        self.guest.packages = owned(packages);
        self
    }

    /// Asks for this much memory, in MiB.
    #[must_use]
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.guest.memory_mib = mib;
        self
    }

    /// Asks for this number of processors.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.guest.cpus = cpus;
        self
    }

    /// Asks for device memory that the harness can read and write, through
    /// [`call_host`](crate::call_host).
    #[must_use]
    pub fn visible_memory(mut self) -> Self {
        self.guest.visible_memory = true;
        self
    }

    /// Asks for hardware virtualization.
    #[must_use]
    pub fn kvm(mut self) -> Self {
        self.kvm = true;
        self
    }

    /// Asks for this many seconds instead of 60.
    #[must_use]
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = seconds;
        self
    }
}

/// A test as the guest-side test program lists it: the program prints a JSON array of these.
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
