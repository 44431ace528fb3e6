//! The file that holds device memory: its creation, its size, and who may use it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags, SealFlags};

use super::error::MemoryError;

/// Smallest device memory, and the unit of its size: the page of the guest's BAR mapping.
pub const GRANULE: u64 = 4096;

/// Size when none is given.
pub const DEFAULT_SIZE: u64 = 64 << 20;

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
        /// Leave holes in it: a page takes no storage until it is written to.
        sparse: bool,
    },
}

fn checked_size(size: u64, unit: u64) -> Result<u64, MemoryError> {
    if size == 0 || !size.is_multiple_of(unit) {
        return Err(MemoryError::Size { size, unit });
    }
    Ok(size)
}

pub(super) fn anonymous(
    size: Option<u64>,
    unit: u64,
    flags: MemfdFlags,
) -> Result<(File, u64), MemoryError> {
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

/// Opens or creates the file at `path`, and has it hold `size` bytes, all of them allocated unless
/// `sparse`: a store through the BAR into a hole of a full file system would end the front end.
///
/// A new file and its name are durable when this returns.
pub(super) fn named(
    path: &Path,
    [share, sparse]: [bool; 2],
    size: Option<u64>,
    unit: u64,
    sync_directory: impl FnOnce(&File) -> io::Result<()>,
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
        (0, wanted) => checked_size(wanted.unwrap_or(DEFAULT_SIZE), unit)?,
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
    if !sparse {
        allocate(&file, size).map_err(|e| {
            if found == 0 {
                // Whatever was allocated beyond the end goes; an error leaves it, to be used later.
                let _ = file.set_len(size).and_then(|()| file.set_len(0));
            }
            MemoryError::Allocate {
                path: path.to_owned(),
                size,
                source: e,
            }
        })?;
    }
    if found == 0 {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        match File::open(directory).and_then(|directory| sync_directory(&directory)) {
            // A directory without storage, such as /proc/self/fd, has nothing to sync.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            other => other.map_err(fail("sync the directory of"))?,
        }
        // Last: a file without a size is taken for new again.
        file.set_len(size).map_err(fail("size"))?;
        file.sync_all().map_err(fail("sync"))?;
    }
    Ok((file, size))
}

/// Allocates storage for the first `size` bytes of `file`, without a change of its size.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    let system = rustix::fs::fstatvfs(file)?;
    let available = system.f_bavail.saturating_mul(system.f_frsize);
    let wanted = size.saturating_sub(file.metadata()?.blocks() * 512);
    // Not tried when it cannot succeed: it would take all of it from others for a while. A file
    // system that does not count its blocks reports none.
    if system.f_blocks > 0 && wanted > available {
        return Err(rustix::io::Errno::NOSPC.into());
    }
    rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, size)?;
    Ok(())
}

/// The system's default huge-page size, in bytes.
pub(super) fn default_huge_page() -> Result<u64, MemoryError> {
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
