// SPDX-License-Identifier: GPL-2.0

//! What read and write cannot express: commands by ioctl or io_uring, and the buffers they name.

pub(crate) mod buffer;
pub(crate) mod command;
pub(crate) mod ioctl;
