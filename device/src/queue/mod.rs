//! Split virtqueues (virtio 1.2, section 2.7) as an untrusted driver writes them.
//!
//! Every field is read once, into private memory, and checked there. What is wrong with one request
//! becomes that request's status; what is wrong with the ring itself is a [`RingError`], after which
//! nothing in the ring can be believed and the queue has to stop.

mod chain;
mod pass;
mod ring;
mod view;

use thiserror::Error;

pub use self::{
    chain::{Chain, Scratch},
    pass::{Empty, MAX_BATCH, Pass, Processor, Surroundings},
    ring::Ring,
    view::{AddressError, GuestView},
};

/// Most descriptors of one request: longer ones are answered with `BAD_REQUEST`.
pub const MAX_SEGMENTS: u16 = 1024;

/// Largest queue.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Why a ring cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// The size is zero, no power of two, or above [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two up to 1024")]
    Size(u32),
    /// A part of the ring is not wholly inside one region of guest memory, or is misaligned.
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
    #[error("descriptor {index} is an indirect table where none may be")]
    MisplacedIndirect {
        /// The descriptor.
        index: u16,
    },
    /// An indirect table of no entries or of a broken one.
    #[error("indirect table of {length} bytes is not a whole number of descriptors")]
    IndirectLength {
        /// Bytes of the table.
        length: u32,
    },
    /// Nothing is wrong: `--fault stop-queue`.
    #[error("stopped on purpose by --fault stop-queue")]
    Injected,
    /// The front end has cut off the file behind guest memory.
    #[error("guest memory has vanished under an access")]
    MemoryVanished,
    /// An indirect table outside of guest memory.
    #[error("indirect table at {address:#x} is outside of guest memory")]
    IndirectAddress {
        /// Guest address of the table.
        address: u64,
    },
}
