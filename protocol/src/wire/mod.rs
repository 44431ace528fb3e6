// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The wire format, free of any dependency but `core`.

mod config;
pub mod crc32c;
mod endian;
mod ioctl;
mod request;
mod shape;

pub use self::{config::*, endian::*, ioctl::*, request::*, shape::*};
