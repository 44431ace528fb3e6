// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device identity, feature bits and configuration space (SPEC.md, sections 1 to 5).

use core::mem::{offset_of, size_of};

use super::{Le16, Le32, Le64, endian::le64_at};

/// Virtio device id: reserved for "dmabuf" in the virtio list, with neither driver nor
/// specification. [`CONFIG_MAGIC`] tells this device from any other with the same id.
pub const DEVICE_ID: u32 = 37;

/// PCI device id of a modern virtio device with [`DEVICE_ID`] (virtio 1.2, section 4.1.2.1).
pub const PCI_DEVICE_ID: u16 = 0x1040 + 37;

/// Shared-memory region that holds the device memory (virtio 1.2, section 2.10).
pub const SHMEM_ID_DEVICE_MEMORY: u8 = 0;

/// Feature bit: device memory is mapped as shared-memory region [`SHMEM_ID_DEVICE_MEMORY`] once
/// the driver has acknowledged this bit.
pub const FEATURE_BAR: u32 = 0;

/// First word of the configuration space: the bytes `vdma`.
pub const CONFIG_MAGIC: u32 = u32::from_le_bytes(*b"vdma");

/// Version of the configuration layout and of the request format described here. A driver leaves
/// a device with another version alone; compatible growth goes through feature bits, operation
/// bits and the reserved bytes.
pub const CONFIG_VERSION: u32 = 1;

/// Bit in [`Config::state`]: region [`SHMEM_ID_DEVICE_MEMORY`] shows device memory right now.
pub const STATE_BAR_MAPPED: u32 = 1 << 0;

/// Bit in [`Config::state`]: device memory is kept in a file across restarts of the device.
pub const STATE_PERSISTENT: u32 = 1 << 1;

/// Bit in [`Config::state`]: others may change device memory at any time (`--share`).
pub const STATE_SHARED: u32 = 1 << 2;

/// The configuration space (SPEC.md, section 4). Read-only for the driver; all fields but
/// [`Config::state`] are constant while a driver is bound.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// [`CONFIG_MAGIC`].
    pub magic: Le32,
    /// [`CONFIG_VERSION`].
    pub version: Le32,
    /// Bytes of device memory; a multiple of 4096.
    pub memory_size: Le64,
    /// Supported operations: bit *n* stands for the operation with code *n*.
    pub operations: Le64,
    /// Number of request queues, 1 to 16.
    pub num_queues: Le16,
    /// Zero; ignored by the driver.
    pub reserved0: Le16,
    /// Most descriptors that one request may have, header and response included.
    pub max_segments: Le32,
    /// Largest `length` of a request, in bytes.
    pub max_transfer: Le32,
    /// `STATE_*` bits.
    pub state: Le32,
    /// Zero; ignored by the driver.
    pub reserved1: [u8; 24],
}

const _: () = {
    assert!(size_of::<Config>() == 64);
    assert!(offset_of!(Config, version) == 4);
    assert!(offset_of!(Config, memory_size) == 8);
    assert!(offset_of!(Config, operations) == 16);
    assert!(offset_of!(Config, num_queues) == 24);
    assert!(offset_of!(Config, max_segments) == 28);
    assert!(offset_of!(Config, max_transfer) == 32);
    assert!(offset_of!(Config, state) == 36);
    assert!(offset_of!(Config, reserved1) == 40);
};

impl Config {
    /// Bytes of configuration space.
    pub const SIZE: usize = size_of::<Self>();

    /// The configuration space as the guest reads it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.magic.get().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.version.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.memory_size.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.operations.get().to_le_bytes());
        bytes[24..26].copy_from_slice(&self.num_queues.get().to_le_bytes());
        bytes[26..28].copy_from_slice(&self.reserved0.get().to_le_bytes());
        bytes[28..32].copy_from_slice(&self.max_segments.get().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.max_transfer.get().to_le_bytes());
        bytes[36..40].copy_from_slice(&self.state.get().to_le_bytes());
        bytes[40..64].copy_from_slice(&self.reserved1);
        bytes
    }

    /// Reads a configuration space; any bytes are one, and its fields are checked where they are
    /// used.
    #[must_use]
    pub fn from_bytes(b: &[u8; Self::SIZE]) -> Self {
        let le16 = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]).into();
        let le32 = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]).into();
        let mut reserved1 = [0; 24];
        reserved1.copy_from_slice(&b[40..]);
        Self {
            magic: le32(0),
            version: le32(4),
            memory_size: le64_at(b, 8),
            operations: le64_at(b, 16),
            num_queues: le16(24),
            reserved0: le16(26),
            max_segments: le32(28),
            max_transfer: le32(32),
            state: le32(36),
            reserved1,
        }
    }
}
