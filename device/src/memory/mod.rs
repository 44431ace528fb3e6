//! Device memory: the bytes behind the BAR, held in a memfd or a file and mapped once.

mod backing;
mod device;
mod durability;
mod error;

pub use self::{
    backing::{Backing, DEFAULT_SIZE, GRANULE},
    device::{DeviceMemory, FileIdentity},
    error::MemoryError,
};

#[cfg(test)]
mod tests;
