//! Comparison of the device with virtio-blk disks in one guest, in time and in instructions.

pub(crate) mod chart;
pub(crate) mod guest;
pub(crate) mod instructions;
mod jobs;
mod median;
mod peers;
pub(crate) mod table;
pub(crate) mod times;
