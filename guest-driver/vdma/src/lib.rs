//! Access to vdma devices from user space.
//!
//! A device node is an ordinary file: everything that works on files works on it, `read_at` and
//! `write_at` of [`std::os::unix::fs::FileExt`] included. This crate adds what files do not have:
//! the description of the device, its statistics, device memory mapped into the process, the
//! operations that reads and writes cannot express, buffers that are made ready for DMA once, and
//! the trace.
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

mod buffer;
mod command;
mod device;
mod error;
mod mapping;
mod node;
mod trace;

pub use buffer::{AllocatedBuffer, RegisteredBuffer};
pub use command::{Source, Target, outcome};
pub use device::{Cache, Device, MapMode};
pub use error::Error;
pub use mapping::{Mapping, Word};
pub use node::{Node, nodes};
pub use trace::{Trace, TraceRead};
/// The structures of the driver's calls, for programs that make them themselves.
pub use vdma_protocol as protocol;
pub use vdma_protocol::{Command, DeviceInfo, ExplainedPage, Operation, Statistics, TraceRecord};
