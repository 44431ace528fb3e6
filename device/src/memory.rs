//! Device memory: the bytes behind the BAR, held in a memfd or a file and mapped once.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags, SealFlags};
use thiserror::Error;
use vm_memory::{
    Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice, mmap::MmapRegionError,
};

use crate::{sigbus, size::format_size};

/// Smallest device memory, and the unit of its size: the page of the guest's BAR mapping.
pub const GRANULE: u64 = 4096;

/// Size when none is given.
pub const DEFAULT_SIZE: u64 = 64 << 20;

/// Why device memory cannot be opened.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is zero or not a multiple of [`GRANULE`] (or of the huge page).
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

/// What holds device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous memory that lives as long as the process.
    Memfd,
    /// Anonymous memory in huge pages of the system's default size.
    HugePages,
    /// A file, whose contents outlive the process.
    File {
        /// The file; created when it does not exist.
        path: PathBuf,
        /// Let other processes map it at the same time.
        share: bool,
    },
}

/// The memory of one device.
#[derive(Debug)]
pub struct DeviceMemory {
    file: File,
    mapping: Arc<MmapRegion>,
    identity: FileIdentity,
    size: u64,
    page_size: u64,
    backing: Backing,
}

/// What identifies an open file: device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity(u64, u64);

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    ///
    /// Those of `fstat`.
    pub fn of(file: &File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self(stat.st_dev, stat.st_ino))
    }
}

impl DeviceMemory {
    /// Creates or opens the memory. `size` is in bytes; `None` stands for the size of an existing
    /// file, or [`DEFAULT_SIZE`].
    ///
    /// # Errors
    ///
    /// See [`MemoryError`]; nothing stays mapped or locked then.
    pub fn open(backing: Backing, size: Option<u64>) -> Result<Self, MemoryError> {
        let unit = match backing {
            Backing::HugePages => default_huge_page()?,
            _ => GRANULE,
        };
        let (file, size) = match &backing {
            Backing::Memfd => anonymous(size, unit, MemfdFlags::empty())?,
            Backing::HugePages => anonymous(size, unit, MemfdFlags::HUGETLB)?,
            Backing::File { path, share } => named(path, *share, size, unit)?,
        };
        let fail = |source| MemoryError::Io {
            action: "inspect device memory".to_owned(),
            source,
        };
        let identity = FileIdentity::of(&file).map_err(fail)?;
        let stat = rustix::fs::fstat(&file).map_err(|e| fail(e.into()))?;
        let page_size = u64::try_from(stat.st_blksize)
            .unwrap_or(GRANULE)
            .max(GRANULE);
        let too_large = |source| MemoryError::Map { size, source };
        let length =
            usize::try_from(size).map_err(|_| too_large(MmapRegionError::InvalidPointer))?;
        let for_mapping = file.try_clone().map_err(fail)?;
        let mapping =
            MmapRegion::from_file(FileOffset::new(for_mapping, 0), length).map_err(too_large)?;
        Ok(Self {
            file,
            mapping: Arc::new(mapping),
            identity,
            size,
            page_size,
            backing,
        })
    }

    /// Bytes of memory.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file that a front end maps as the BAR.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What holds the memory.
    #[must_use]
    pub fn backing(&self) -> &Backing {
        &self.backing
    }

    /// The one mapping of the memory in this process. Every access goes through it, so that
    /// copies detect an overlap of source and destination.
    #[must_use]
    pub fn mapping(&self) -> &Arc<MmapRegion> {
        &self.mapping
    }

    /// The identity of this memory's file.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// `length` bytes at `offset`, or `None` when they are not all inside.
    #[must_use]
    pub fn slice(&self, offset: u64, length: u64) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(offset).ok()?;
        let length = usize::try_from(length).ok()?;
        self.mapping.get_slice(offset, length).ok()
    }

    /// Recovers from a SIGBUS at a host address. If it lies in this memory, the file could not
    /// provide a page (it was truncated, or its file system is full), and the next access tries
    /// that page again. Returns `false` for any other address.
    pub fn recover(&self, address: usize) -> bool {
        let base = self.mapping.as_ptr() as usize;
        let Some(at) = address
            .checked_sub(base)
            .filter(|&at| at < self.mapping.size())
        else {
            return false;
        };
        log::error!(
            "device memory at {at:#x} has no page: was its file truncated, or is the file system full?"
        );
        if let Err(e) = sigbus::restore_page(&self.mapping, &self.file, at) {
            log::error!("cannot map that page again: {e}");
        }
        true
    }

    /// Makes every byte durable in the file; does nothing for anonymous memory.
    ///
    /// # Errors
    ///
    /// Those of `fdatasync`.
    pub fn flush(&self) -> io::Result<()> {
        match self.backing {
            Backing::File { .. } => self.file.sync_data(),
            Backing::Memfd | Backing::HugePages => Ok(()),
        }
    }

    /// Makes a range read as zeroes and frees the whole pages in it.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the range exceeds the memory, otherwise those of `fallocate`.
    pub fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let range = self.slice(offset, length).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "range {offset}+{length} exceeds the {} bytes of memory",
                    self.size
                ),
            )
        })?;
        let end = offset + length;
        let first_page = offset.next_multiple_of(self.page_size).min(end);
        let last_page = (end - end % self.page_size).max(first_page);
        let zero = |from: u64, to: u64| {
            // Both lie inside `range`, whose length fits in usize.
            let at = usize::try_from(from - offset).unwrap_or(usize::MAX);
            let count = usize::try_from(to - from).unwrap_or(usize::MAX);
            range
                .subslice(at, count)
                .map(|part| write_zeroes(&part))
                .map_err(io::Error::other)
        };
        zero(offset, first_page)?;
        zero(last_page, end)?;
        if first_page == last_page {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, first_page, last_page - first_page) {
            Err(rustix::io::Errno::OPNOTSUPP) => zero(first_page, last_page),
            other => other.map_err(io::Error::from),
        }
    }
}

fn write_zeroes(part: &VolatileSlice<'_>) {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < part.len() {
        // `write` copies what fits and fails only beyond the end.
        match part.write(&ZEROES, done) {
            Ok(count) => done += count,
            Err(_) => return,
        }
    }
}

fn checked_size(size: u64, unit: u64) -> Result<u64, MemoryError> {
    if size == 0 || !size.is_multiple_of(unit) {
        return Err(MemoryError::Size { size, unit });
    }
    Ok(size)
}

fn anonymous(size: Option<u64>, unit: u64, flags: MemfdFlags) -> Result<(File, u64), MemoryError> {
    let size = checked_size(size.unwrap_or(DEFAULT_SIZE), unit)?;
    let fail = |action: &str| {
        let action = action.to_owned();
        move |e: rustix::io::Errno| MemoryError::Io {
            action,
            source: e.into(),
        }
    };
    let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("vdma-memory", flags)
        .map_err(fail("create the memfd for device memory"))?;
    rustix::fs::ftruncate(&fd, size).map_err(fail(
        "size the memfd for device memory (is --memory-size too large?)",
    ))?;
    if flags.contains(MemfdFlags::HUGETLB) {
        // A missing huge page would otherwise raise SIGBUS at some later access.
        rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size).map_err(fail(
            "reserve huge pages (raise /proc/sys/vm/nr_hugepages or leave out --hugepages)",
        ))?;
    }
    // The front end receives this file: it must not be able to truncate it under our mapping.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(fail("seal the memfd for device memory"))?;
    Ok((File::from(fd), size))
}

fn named(
    path: &Path,
    share: bool,
    size: Option<u64>,
    unit: u64,
) -> Result<(File, u64), MemoryError> {
    let fail = |what: &str| {
        let action = format!("{what} memory file {}", path.display());
        move |source| MemoryError::Io { action, source }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(fail("open"))?;
    let metadata = file.metadata().map_err(fail("inspect"))?;
    if !metadata.is_file() {
        return Err(MemoryError::NotAFile {
            path: path.to_owned(),
        });
    }
    let lock = if share {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(&file, lock) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(MemoryError::Locked {
                path: path.to_owned(),
            });
        }
        Err(e) => return Err(fail("lock")(e.into())),
    }
    // The size is read under the lock: another process may have set it in between.
    let found = file.metadata().map_err(fail("inspect"))?.len();
    let size = match (found, size) {
        (0, wanted) => {
            let wanted = checked_size(wanted.unwrap_or(DEFAULT_SIZE), unit)?;
            file.set_len(wanted).map_err(fail("size"))?;
            wanted
        }
        (found, Some(wanted)) if found != wanted => {
            return Err(MemoryError::FileSize {
                path: path.to_owned(),
                found,
                wanted,
            });
        }
        (found, _) => checked_size(found, unit).map_err(|_| MemoryError::OddFile {
            path: path.to_owned(),
            found,
            unit,
        })?,
    };
    Ok((file, size))
}

/// The system's default huge-page size, in bytes.
fn default_huge_page() -> Result<u64, MemoryError> {
    let fail = |source| MemoryError::Io {
        action: "read the huge page size from /proc/meminfo".to_owned(),
        source,
    };
    let meminfo = std::fs::read_to_string("/proc/meminfo").map_err(fail)?;
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("Hugepagesize:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| fail(io::Error::other("this kernel has no huge pages")))
}
