//! One descriptor (virtio 1.2, section 2.7.5).

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::GuestAddress;

/// Bytes of a descriptor in guest memory.
pub(super) const DESCRIPTOR_SIZE: usize = 16;

/// A private copy of a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) address: GuestAddress,
    pub(super) length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    pub(super) fn from_bytes(b: &[u8; DESCRIPTOR_SIZE]) -> Self {
        let address = u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        Self {
            address: GuestAddress(address),
            length: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
            flags: u16::from_le_bytes([b[12], b[13]]),
            next: u16::from_le_bytes([b[14], b[15]]),
        }
    }

    fn has(self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }

    pub(super) fn next(self) -> Option<u16> {
        self.has(VRING_DESC_F_NEXT).then_some(self.next)
    }

    pub(super) fn is_writable(self) -> bool {
        self.has(VRING_DESC_F_WRITE)
    }

    pub(super) fn is_indirect(self) -> bool {
        self.has(VRING_DESC_F_INDIRECT)
    }
}
