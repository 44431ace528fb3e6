use std::{io, path::PathBuf};

/// Why a call of this crate failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device node cannot be opened.
    #[error("{}: {cause}{}", path.display(), open_remedy(cause))]
    Open {
        /// The device node.
        path: PathBuf,
        /// The error of the system.
        cause: io::Error,
    },
    /// A call on an open device failed.
    #[error("{}: {call}: {cause}{}", path.display(), call_remedy(cause))]
    Call {
        /// The device node.
        path: PathBuf,
        /// Name of the call that failed.
        call: &'static str,
        /// The error of the system.
        cause: io::Error,
    },
    /// The file is not a vdma device.
    #[error("{}: not a vdma device; `vdma list` shows the devices of this system", path.display())]
    NotVdma {
        /// The file.
        path: PathBuf,
    },
    /// A load or store outside of a mapping, or across a word's alignment.
    #[error(
        "offset {offset:#x} with {size} bytes is not aligned, or outside of a mapping of {length:#x} bytes"
    )]
    OutsideMapping {
        /// Offset of the access in the mapping, in bytes.
        offset: usize,
        /// Bytes of the access.
        size: usize,
        /// Bytes of the mapping.
        length: usize,
    },
    /// An operation worked on fewer bytes than it was asked to.
    #[error("{}: {call}: {bytes} of {length} bytes; part of the memory is not accessible", path.display())]
    Short {
        /// The device node.
        path: PathBuf,
        /// The operation.
        call: &'static str,
        /// Bytes that it worked on.
        bytes: u64,
        /// Bytes that it was to work on.
        length: u64,
    },
    /// Source and target of a copy differ in length.
    #[error("copy of {from} bytes to {to} bytes: source and target must have the same length")]
    Lengths {
        /// Bytes of the source.
        from: u64,
        /// Bytes of the target.
        to: u64,
    },
    /// More commands than a batch may have.
    #[error("{count} commands in a batch; the limit is 256: split it")]
    TooManyCommands {
        /// How many there are.
        count: usize,
    },
    /// The system's list of devices cannot be read.
    #[error("/sys/class/misc: {0}; is sysfs mounted?")]
    List(io::Error),
}

fn open_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "; is the module vdma loaded, and a device present? (`vdma list`)"
        }
        io::ErrorKind::PermissionDenied => "; try as root, or join the group that owns the node",
        _ => "",
    }
}

fn call_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NODEV.raw_os_error() => {
            " (the device is gone, or has no BAR)"
        }
        Some(code) if code == rustix::io::Errno::IO.raw_os_error() => {
            " (the device failed the request; the kernel log says why)"
        }
        Some(code) if code == rustix::io::Errno::PERM.raw_os_error() => {
            " (needs CAP_SYS_ADMIN: try as root)"
        }
        _ => "",
    }
}
