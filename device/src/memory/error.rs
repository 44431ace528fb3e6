//! Why device memory cannot be opened.

use std::{io, path::PathBuf};

use thiserror::Error;
use vm_memory::mmap::MmapRegionError;

use crate::size::format_size;

/// Why device memory cannot be opened.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is zero or not a multiple of 4 KiB (or of the huge page).
    #[error("memory size {size} is not a multiple of {unit} bytes; try {}", format_size((*size).max(1).next_multiple_of(*unit)))]
    Size {
        /// The size requested.
        size: u64,
        /// The unit that it has to be a multiple of.
        unit: u64,
    },
    /// The file exists with a size that device memory cannot have.
    #[error("memory file {} holds {found} bytes, which is not a multiple of {unit}; `truncate --size {}` it or choose another file", path.display(), (*found).max(1).next_multiple_of(*unit))]
    OddFile {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The unit that it has to be a multiple of.
        unit: u64,
    },
    /// The file exists with another size than requested.
    #[error("memory file {} holds {found} bytes, not {wanted}; leave out --memory-size or choose another file", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The size requested.
        wanted: u64,
    },
    /// Another process has locked the file. A front end that still maps the memory into its guest
    /// holds the lock, too: the guest may write there.
    #[error("memory file {} is in use by another process (a backend, or a QEMU that still maps it); stop it, or give --share to both", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Not a regular file.
    #[error("memory file {} is not a regular file; choose another path", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file system cannot provide all pages of the file.
    #[error("cannot allocate all {size} bytes of memory file {}: {source}; free space there, or give --sparse", path.display())]
    Allocate {
        /// The file.
        path: PathBuf,
        /// Bytes of memory.
        size: u64,
        /// Why it failed.
        source: io::Error,
    },
    /// An operating system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// The action that failed, with its object.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The memory cannot be mapped.
    #[error("cannot map {size} bytes of device memory: {source}; choose a smaller --memory-size")]
    Map {
        /// Bytes to map.
        size: u64,
        /// Why it failed.
        source: MmapRegionError,
    },
}
