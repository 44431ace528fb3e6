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

/// Blocks that the file has room for; those of a guest that has more are counted as lost.
const CAPACITY: usize = 1 << 20;

/// What the file begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"vdmacnt1");

/// Before the records.
#[repr(C)]
#[derive(Debug)]
struct Header {
    magic: AtomicU64,
    /// Records that are filled in.
    used: AtomicU64,
    /// Blocks that found no record.
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

    /// Instructions executed in it, the block taken as whole whenever it was entered.
    pub(crate) fn executed(&self) -> u64 {
        self.executions.load(Ordering::Relaxed) * self.instructions.load(Ordering::Relaxed)
    }

    /// The block is entered once more. Any thread.
    pub fn enter(&self) {
        self.executions.fetch_add(1, Ordering::Relaxed);
    }
}

const SIZE: usize = size_of::<Header>() + CAPACITY * size_of::<Record>();

/// Why the shared file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The file cannot be opened, made or mapped.
    #[error("cannot open and map it: {0}")]
    System(#[from] Errno),
    /// The file was not made by this version of the plugin.
    #[error("not a file that this version of the counting plugin has made")]
    Foreign,
}

/// The file, mapped for as long as the process lives: QEMU runs callbacks until its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared(NonNull<Header>);

// SAFETY: All that is reached through the pointer is atomic, and is there for good.
unsafe impl Send for Shared {}
// SAFETY: As above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Opens the file that a plugin has made.
    pub(crate) fn open(path: &Path) -> Result<Self, LayoutError> {
        let shared = Self::map(path, OFlags::RDWR, false)?;
        if shared.header().magic.load(Ordering::Acquire) == MAGIC {
            Ok(shared)
        } else {
            Err(LayoutError::Foreign)
        }
    }

    fn map(path: &Path, flags: OFlags, make: bool) -> Result<Self, LayoutError> {
        let file = rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        if make {
            rustix::fs::ftruncate(&file, SIZE as u64)?;
        }
        if usize::try_from(rustix::fs::fstat(&file)?.st_size) != Ok(SIZE) {
            return Err(LayoutError::Foreign);
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: A new mapping where there is none, of a file that is as long as this.
        let address =
            unsafe { rustix::mm::mmap(null_mut(), SIZE, access, MapFlags::SHARED, &file, 0) }?;
        NonNull::new(address.cast())
            .map(Self)
            .ok_or(LayoutError::Foreign)
    }

    fn header(&self) -> &'static Header {
        // SAFETY: The mapping begins with a header, and is never undone; any bytes are integers.
        unsafe { self.0.as_ref() }
    }

    /// All records, filled in or not.
    fn records(&self) -> &'static [Record] {
        // SAFETY: The records come behind the header, inside of the mapping.
        let first = unsafe { self.0.add(1) }.cast();
        // SAFETY: There are as many, and the mapping is never undone; any bytes are integers.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), CAPACITY) }
    }

    /// The records that are filled in.
    pub(crate) fn used(&self) -> &'static [Record] {
        let used = self.header().used.load(Ordering::Acquire);
        let used = usize::try_from(used).unwrap_or(CAPACITY);
        &self.records()[..used.min(CAPACITY)]
    }

    /// Blocks that found no record, and so are not counted.
    pub(crate) fn lost(&self) -> u64 {
        self.header().lost.load(Ordering::Relaxed)
    }
}

/// The plugin's end of the file.
#[derive(Debug)]
pub struct Recorder {
    shared: Shared,
    /// Blocks that were translated before: QEMU forgets them now and then.
    known: HashMap<(u64, u64), &'static Record>,
}

impl Recorder {
    /// Makes the file, empty.
    ///
    /// # Errors
    ///
    /// [`LayoutError::System`] when that fails.
    pub fn create(path: &Path) -> Result<Self, LayoutError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        let shared = Shared::map(path, flags, true)?;
        shared.header().magic.store(MAGIC, Ordering::Release);
        Ok(Self {
            shared,
            known: HashMap::new(),
        })
    }

    /// The record of a block of so many `instructions` at `address`; `None` when the file is full, which
    /// is counted.
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
