// SPDX-License-Identifier: GPL-2.0

//! The virtio bus: drivers, devices and virtqueues.
//!
//! C headers: `include/linux/virtio.h`, `include/linux/virtio_config.h`.

mod chain;
mod device;
mod driver;
mod virtqueue;

pub(crate) use self::{
    chain::DataChain,
    device::{Control, Device, DeviceHandle, LockedDevice, QueueHandler, Stopped},
    driver::{Driver, DriverRegistration},
    virtqueue::VirtQueue,
};
