//! The device's operations, on device memory and the data of a request.
//!
//! Nothing here knows of virtio. Data comes as lists of [`VolatileSlice`]s, which a test makes from
//! plain byte arrays and the device from guest memory. Such memory may change at any time, so every
//! byte is read only once: what has to be inspected is first copied into a private buffer.
//!
//! [`VolatileSlice`]: vm_memory::VolatileSlice

mod execute;
mod kernels;
mod segments;

pub use self::{
    execute::{Engine, MAX_TRANSFER, Outcome},
    segments::Segments,
};
#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // Lengths here are small.
mod tests;
