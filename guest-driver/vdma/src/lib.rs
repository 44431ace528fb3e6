//! Access to vdma devices from user space.
//!
//! A device node is an ordinary file: everything that works on files works on it, `read_at` and
//! `write_at` of [`std::os::unix::fs::FileExt`] included. This crate adds what files do not have: the
//! description of the device, its statistics, and device memory mapped into the process.
//!
//! ```no_run
//! use std::os::unix::fs::FileExt;
//!
//! let device = vdma::Device::open("/dev/vdma0")?;
//! device.file().write_all_at(b"hello", 4096)?;
//! let memory = device.map(4096, 4096)?;
//! assert_eq!(memory.load::<u8>(0)?, b'h');
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod device;
mod error;
mod mapping;
mod node;

pub use device::Device;
pub use error::Error;
pub use mapping::{Mapping, Word};
pub use node::{Node, nodes};
pub use vdma_protocol::{DeviceInfo, Operation, Statistics};
