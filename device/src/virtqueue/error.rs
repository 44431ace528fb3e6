//! Why a ring cannot be used any further.

use thiserror::Error;

/// An error after which nothing in the ring can be trusted: its queue stops until it is
/// reconfigured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// The size is zero, not a power of two, or above [`MAX_QUEUE_SIZE`].
    ///
    /// [`MAX_QUEUE_SIZE`]: super::ring::MAX_QUEUE_SIZE
    #[error("queue size {0} is not a power of two up to 1024")]
    Size(u32),
    /// A part of the ring is misaligned, or not contained in one region of guest memory.
    #[error("{part} at {address:#x} is misaligned or outside of guest memory")]
    Placement {
        /// Descriptor table, available ring or used ring.
        part: &'static str,
        /// Its guest address.
        address: u64,
    },
    /// More entries are available than the ring holds.
    #[error("available index {index} is {ahead} ahead, but the ring has {size} entries")]
    AvailableIndex {
        /// The driver's index.
        index: u16,
        /// Entries that would be new.
        ahead: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A head or a `next` field names a descriptor beyond the table.
    #[error("descriptor {index} is beyond the table's {size}")]
    DescriptorIndex {
        /// The descriptor named.
        index: u16,
        /// Descriptors in the table.
        size: usize,
    },
    /// A chain visits more descriptors than there are.
    #[error("the chain from descriptor {head} is circular")]
    Circular {
        /// First descriptor.
        head: u16,
    },
    /// An indirect table inside of another, or one that continues with `next`.
    #[error("descriptor {index} is an indirect table where none is allowed")]
    MisplacedIndirect {
        /// The descriptor.
        index: u16,
    },
    /// An indirect table that is empty or ends in a partial descriptor.
    #[error("indirect table of {length} bytes is not a whole number of descriptors")]
    IndirectLength {
        /// Bytes of the table.
        length: u32,
    },
    /// An indirect table outside of guest memory.
    #[error("indirect table at {address:#x} is outside of guest memory")]
    IndirectAddress {
        /// Guest address of the table.
        address: u64,
    },
}
