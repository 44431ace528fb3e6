//! Why a pass failed.

use thiserror::Error;

use crate::virtqueue::RingError;

/// An error that stops a queue until it is reconfigured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PassError {
    /// The driver has corrupted the ring.
    #[error("corrupt ring: {0}")]
    Ring(#[from] RingError),
    /// The front end has truncated the file behind guest memory. All its queues share that memory.
    #[error("guest memory was truncated while in use")]
    GuestMemory,
    /// The queue was stopped on purpose.
    #[error("stopped by --fault stop-queue")]
    Injected,
}
