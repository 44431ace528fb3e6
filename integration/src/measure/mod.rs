//! Side-by-side measurements: the device and virtio-blk disks in one guest, the same jobs.

pub(crate) mod chart;
pub(crate) mod guest;
pub(crate) mod instructions;
mod jobs;
mod median;
mod peers;
pub(crate) mod table;
pub(crate) mod times;
