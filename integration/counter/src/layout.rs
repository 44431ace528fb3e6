//! The shared file: a header, and a record for each block.

use std::{
    collections::HashMap,
    path::Path,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

/// Capacity of the file in blocks; further blocks are counted as lost.
const CAPACITY: usize = 1 << 20;

/// First bytes of the file.
const MAGIC: u64 = u64::from_le_bytes(*b"vdmacnt1");

/// The header, before the records.
#[repr(C)]
#[derive(Debug)]
struct Header {
    magic: AtomicU64,
    /// Number of records in use.
    used: AtomicU64,
    /// Number of blocks without a record.
    lost: AtomicU64,
}

/// A block of guest code.
#[repr(C)]
#[derive(Debug)]
pub struct Record {
    address: AtomicU64,
    instructions: AtomicU64,
    executions: AtomicU64,
}

impl Record {
    /// Guest virtual address of its first instruction.
    pub(crate) fn address(&self) -> u64 {
        self.address.load(Ordering::Relaxed)
    }

    /// Number of instructions executed in it; every entry counts the whole block.
    pub(crate) fn executed(&self) -> u64 {
        self.executions.load(Ordering::Relaxed) * self.instructions.load(Ordering::Relaxed)
    }

    /// Counts an entry of the block; may be called by any thread.
    pub fn enter(&self) {
        self.executions.fetch_add(1, Ordering::Relaxed);
    }
}

const SIZE: usize = size_of::<Header>() + CAPACITY * size_of::<Record>();

/// Error of opening or creating the shared file.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file cannot be opened, created or mapped.
    #[error("cannot open and map it: {0}")]
    System(#[from] Errno),
    /// The file was not created by this version of the plugin.
    #[error("not a file of this version of the counting plugin")]
    Foreign,
}

/// The file, mapped until the process ends: QEMU runs callbacks until its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared(NonNull<Header>);

// SAFETY: Everything behind the pointer is atomic and stays mapped until the process ends.
unsafe impl Send for Shared {}
// SAFETY: Everything behind the pointer is atomic and stays mapped until the process ends.
unsafe impl Sync for Shared {}

impl Shared {
    /// Opens the file that a plugin has created.
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        let shared = Self::map(path, OFlags::RDWR, false)?;
        if shared.header().magic.load(Ordering::Acquire) == MAGIC {
            Ok(shared)
        } else {
            Err(LayoutError::Foreign)
        }
    }

    fn map(path: &Path, flags: OFlags, create: bool) -> Result<Self, LayoutError> {
        let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        if create {
            rustix::fs::ftruncate(&file, SIZE as u64)?;
        }
        if usize::try_from(rustix::fs::fstat(&file)?.st_size) != Ok(SIZE) {
            return Err(LayoutError::Foreign);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: The kernel chooses an unused address, and the file has `SIZE` bytes.
        let address =
            unsafe { rustix::mm::mmap(null_mut(), SIZE, access, MapFlags::SHARED, &file, 0) }?;
        NonNull::new(address.cast())
            .map(Self)
            .ok_or(LayoutError::Foreign)
    }

    fn header(&self) -> &'static Header {
        // SAFETY: The mapping begins with a header, which is valid for any bytes, and is never
        // unmapped.
        unsafe { self.0.as_ref() }
    }

    /// All records, in use or not.
    fn records(&self) -> &'static [Record] {
        // SAFETY: The records follow the header within the mapping.
        let first = unsafe { self.0.add(1) }.cast();
        // SAFETY: The mapping has `CAPACITY` records, which are valid for any bytes, and is never
        // unmapped.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), CAPACITY) }
    }

    /// The records in use.
    pub(crate) fn used(&self) -> &'static [Record] {
        let used = self.header().used.load(Ordering::Acquire);
        let used = usize::try_from(used).unwrap_or(CAPACITY);
        &self.records()[..used.min(CAPACITY)]
    }

    /// Number of blocks without a record, which are not counted.
    pub(crate) fn lost(&self) -> u64 {
        self.header().lost.load(Ordering::Relaxed)
    }
}

/// The plugin's side of the file.
#[derive(Debug)]
pub struct Recorder {
    shared: Shared,
    /// Blocks that were translated before: QEMU discards translations from time to time.
    known: HashMap<(u64, u64), &'static Record>,
}

impl Recorder {
    /// Creates an empty file.
    ///
    /// # Errors
    ///
    /// [`LayoutError::System`] if that fails.
    pub fn create(path: &Path) -> Result<Self, LayoutError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        let shared = Shared::map(path, flags, true)?;
        shared.header().magic.store(MAGIC, Ordering::Release);
        Ok(Self {
            shared,
            known: HashMap::new(),
        })
    }

    /// Returns the record of a block of `instructions` instructions at `address`. If the file is
    /// full, it counts the block as lost and returns `None`.
    pub fn record(&mut self, address: u64, instructions: u64) -> Option<&'static Record> {
        if let Some(record) = self.known.get(&(address, instructions)) {
            return Some(record);
        }
        let header = self.shared.header();
        let index = self.known.len();
        let Some(record) = self.shared.records().get(index) else {
            header.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        record.address.store(address, Ordering::Relaxed);
        record.instructions.store(instructions, Ordering::Relaxed);
        self.known.insert((address, instructions), record);
        header
            .used
            .store(self.known.len() as u64, Ordering::Release);
        Some(record)
    }
}
