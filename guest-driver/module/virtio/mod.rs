// SPDX-License-Identifier: GPL-2.0

//! The virtio bus: drivers, devices and virtqueues.
//!
//! C headers: `include/linux/virtio.h`, `include/linux/virtio_config.h`.

mod device;
mod driver;
mod virtqueue;

pub(crate) use self::{
    device::{Device, QueueHandler, SharedMemory},
    driver::{Driver, Registration},
    virtqueue::{Buffer, SgLists, VirtQueue},
};
