//! The memory of one device: its mapping, what is missing of it, and what is durable.

use std::{
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use rustix::fs::{FallocateFlags, MemfdFlags};
use vm_memory::{
    Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice, mmap::MmapRegionError,
};

use super::{
    backing::{self, Backing, GRANULE},
    durability::Durability,
    error::MemoryError,
};
use crate::sigbus::{self, Owner, Watched};

/// Makes the data of a file durable.
pub(crate) type SyncData = fn(&File) -> io::Result<()>;

/// The memory of one device.
#[derive(Debug)]
pub struct DeviceMemory {
    file: File,
    mapping: Arc<MmapRegion>,
    watched: Watched,
    /// Number of poisoned blocks that the log tells of.
    reported: AtomicU32,
    identity: FileIdentity,
    size: u64,
    page_size: u64,
    backing: Backing,
    durability: Durability,
    sync: SyncData,
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
    /// file, or 64 MiB.
    ///
    /// # Errors
    ///
    /// See [`MemoryError`]; nothing stays mapped or locked then.
    pub fn open(backing: Backing, size: Option<u64>) -> Result<Self, MemoryError> {
        Self::with_sync(backing, size, File::sync_data)
    }

    /// The same with another way to make the file's data durable, for tests.
    pub(crate) fn with_sync(
        backing: Backing,
        size: Option<u64>,
        sync: SyncData,
    ) -> Result<Self, MemoryError> {
        let unit = match backing {
            Backing::HugePages => backing::default_huge_page()?,
            _ => GRANULE,
        };
        let (file, size) = match &backing {
            Backing::Memfd => backing::anonymous(size, unit, MemfdFlags::empty())?,
            Backing::HugePages => backing::anonymous(size, unit, MemfdFlags::HUGETLB)?,
            Backing::File {
                path,
                share,
                sparse,
            } => backing::named(path, [*share, *sparse], size, unit, File::sync_all)?,
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
        let mapping = Arc::new(mapping);
        Ok(Self {
            file,
            watched: Watched::new(Arc::clone(&mapping), Owner::Device),
            reported: AtomicU32::new(0),
            mapping,
            identity,
            size,
            page_size,
            backing,
            durability: Durability::default(),
            sync,
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

    /// The mapping, for the threads that access it.
    #[must_use]
    pub fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Whether pages of `ranges`, or pages close to them, are missing: the file was truncated, or
    /// its file system is full. They stay so until the memory is opened again.
    #[inline]
    #[must_use]
    pub fn is_poisoned(&self, ranges: &[&VolatileSlice<'_>]) -> bool {
        sigbus::poison_exists() && self.find_poison(ranges)
    }

    #[cold]
    fn find_poison(&self, ranges: &[&VolatileSlice<'_>]) -> bool {
        let count = self.watched.poisoned_blocks();
        if self.reported.fetch_max(count, Ordering::Relaxed) < count {
            log::error!(
                "pages of device memory are missing (was its file truncated, or is the file system \
                 full?); requests near them fail with IO_ERROR until this backend is started again"
            );
        }
        ranges.iter().any(|range| self.watched.is_poisoned(range))
    }

    /// Makes every byte durable in the file; does nothing for anonymous memory. Flushes at the same
    /// time share one sync.
    ///
    /// # Errors
    ///
    /// The sync fails, or the file has lost pages. What is durable is unknown from then on, so that
    /// every further flush fails.
    pub fn flush(&self) -> io::Result<()> {
        let Backing::File { .. } = self.backing else {
            return Ok(());
        };
        self.durability.flush(|| {
            (self.sync)(&self.file)?;
            let length = u64::try_from(rustix::fs::fstat(&self.file)?.st_size).unwrap_or(0);
            if length < self.size || self.watched.poisoned_blocks() > 0 {
                return Err(io::Error::other("the file has lost pages"));
            }
            Ok(())
        })
    }

    /// Makes a range read as zeroes. Frees the whole pages in it, unless a page given back might
    /// not be had again: a huge page, or a page of a file that is not sparse.
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
        let mode = match self.backing {
            Backing::HugePages => return zero(first_page, last_page),
            Backing::File { sparse: false, .. } => FallocateFlags::ZERO_RANGE,
            Backing::Memfd | Backing::File { .. } => FallocateFlags::PUNCH_HOLE,
        };
        let mode = mode | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, mode, first_page, last_page - first_page) {
            // The second: for what describes the pages, which is not needed to write them.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSPC) => {
                zero(first_page, last_page)
            }
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
