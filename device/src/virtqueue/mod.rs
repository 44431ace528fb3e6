//! Split virtqueues (virtio 1.2, section 2.7) as an untrusted driver writes them.
//!
//! Every field is read once, into private memory, and checked there. An error in one request
//! becomes a [`ChainDefect`], for the caller to answer; an error in the ring itself is a
//! [`RingError`], after which nothing in the ring can be trusted and the queue has to stop. What a
//! request means is not known here.

mod chain;
mod descriptor;
mod error;
mod guest_view;
mod queue;
mod ring;

pub use self::{
    chain::{Chain, ChainDefect, MAX_SEGMENTS, Scratch},
    error::RingError,
    guest_view::{AddressError, GuestView},
    queue::ActiveQueue,
    ring::MAX_QUEUE_SIZE,
};
