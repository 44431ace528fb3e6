// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver offers to user space beyond read, write and mmap: the `ioctl` calls of
//! `/dev/vdmaN`. Structures are in the byte order of the machine and have no padding.

use core::mem::size_of;

/// The `type` byte of vdma's ioctl numbers.
pub const IOCTL_TYPE: u8 = 0xd5;

/// `_IOR(IOCTL_TYPE, number, size)` of `asm-generic/ioctl.h`.
#[allow(clippy::cast_possible_truncation)] // The size is checked against the field's 14 bits.
const fn ioctl_read(number: u8, size: usize) -> u32 {
    const DIRECTION_READ: u32 = 2;
    assert!(size < 1 << 14);
    DIRECTION_READ << 30 | (size as u32) << 16 | (IOCTL_TYPE as u32) << 8 | number as u32
}

/// Fills a [`DeviceInfo`].
pub const IOCTL_INFO: u32 = ioctl_read(0, size_of::<DeviceInfo>());

/// Fills [`Statistics`] with the counts of the open file.
pub const IOCTL_FILE_STATISTICS: u32 = ioctl_read(1, size_of::<Statistics>());

/// Fills [`Statistics`] with the counts of the device since the driver was bound to it.
pub const IOCTL_DEVICE_STATISTICS: u32 = ioctl_read(2, size_of::<Statistics>());

/// What a device is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Negotiated virtio feature bits.
    pub features: u64,
    /// Bytes of device memory.
    pub memory_size: u64,
    /// Supported operations: bit *n* stands for the operation with code *n*.
    pub operations: u64,
    /// Guest-physical address of the shared-memory window, 0 without one.
    pub bar_address: u64,
    /// Bytes of the shared-memory window, 0 without one.
    pub bar_size: u64,
    /// Request queues in use.
    pub num_queues: u32,
    /// Descriptors of each request queue.
    pub queue_size: u32,
    /// Most data segments of one request; longer lists are split by the driver.
    pub max_segments: u32,
    /// Most data bytes of one request; longer transfers are split by the driver.
    pub max_transfer: u32,
    /// `STATE_*` bits of the configuration space.
    pub state: u32,
    /// Width of the addresses that the driver hands to the device, in bits.
    pub dma_bits: u32,
}

/// Counts of what passed through the driver.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Requests handed to the device.
    pub submitted: u64,
    /// Requests that came back, whatever their status.
    pub completed: u64,
    /// Requests that came back with an error, or were given up.
    pub failed: u64,
    /// Bytes moved from device memory.
    pub bytes_read: u64,
    /// Bytes moved to device memory.
    pub bytes_written: u64,
    /// User pages pinned for requests.
    pub pages_pinned: u64,
    /// Scatter-gather entries that these pages were coalesced into.
    pub segments: u64,
    /// Requests with the device at this moment.
    pub in_flight: u64,
    /// Most requests that were with the device at once.
    pub in_flight_max: u64,
    /// Requests that had to wait for room in a queue.
    pub queue_full: u64,
}

const _: () = {
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(size_of::<Statistics>() == 80);
};
