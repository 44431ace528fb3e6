//! Device memory in files: what is allocated, what is durable, and what a fault costs.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use vdma_protocol::{Operation, RequestHeader, Status};

use super::{Backing, DeviceMemory, FileIdentity, backing::named};
use crate::{
    engine::{Engine, Segments},
    sigbus::guarded,
};

const MIB: u64 = 1 << 20;

fn backing(path: &Path, sparse: bool) -> Backing {
    Backing::File {
        path: path.to_owned(),
        share: false,
        sparse,
    }
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// A memory file in a directory of its own.
struct Bench {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            path: directory.path().join("memory"),
            _directory: directory,
        }
    }

    fn memory(&self, sparse: bool) -> Arc<DeviceMemory> {
        Arc::new(DeviceMemory::open(backing(&self.path, sparse), Some(MIB)).unwrap())
    }

    fn truncate(&self, length: u64) {
        let file = OpenOptions::new().write(true).open(&self.path).unwrap();
        file.set_len(length).unwrap();
    }
}

/// Executes a request without data, as a worker does.
fn run(memory: &Arc<DeviceMemory>, operation: Operation, offset: u64, length: u64) -> Status {
    let header = RequestHeader::new(operation, offset, length, u64::MAX);
    let mut engine = Engine::new(Arc::clone(memory));
    let list = [memory.watched().clone()];
    guarded(&list, || {
        engine.execute(&header, &Segments::new(&[]), &Segments::new(&[]))
    })
    .status
}

#[test]
fn a_file_is_allocated_in_full_unless_it_is_sparse() {
    let bench = Bench::new();
    drop(bench.memory(true));
    assert_eq!(allocated(&bench.path), 0);
    // Holes of an existing file are filled.
    let memory = bench.memory(false);
    assert!(allocated(&bench.path) >= MIB);
    assert_eq!(memory.file().metadata().unwrap().len(), MIB);
}

#[test]
fn discard_gives_back_pages_of_a_sparse_file_only() {
    for sparse in [false, true] {
        let bench = Bench::new();
        let memory = bench.memory(sparse);
        assert_eq!(run(&memory, Operation::Fill, 0, MIB), Status::OK);
        memory.flush().unwrap();
        assert_eq!(run(&memory, Operation::Discard, 100, MIB - 200), Status::OK);
        memory.flush().unwrap();
        assert_eq!(allocated(&bench.path) >= MIB, !sparse, "sparse: {sparse}");
        let mut bytes = vec![0u8; 1 << 20];
        memory.slice(0, MIB).unwrap().copy_to(&mut bytes);
        let (first, rest) = bytes.split_at(100);
        let (zeroes, last) = rest.split_at(rest.len() - 100);
        assert!(first.iter().chain(last).all(|&byte| byte == 0xff));
        assert!(zeroes.iter().all(|&byte| byte == 0), "sparse: {sparse}");
    }
}

#[test]
fn missing_pages_fail_requests_until_the_memory_is_opened_again() {
    let bench = Bench::new();
    let memory = bench.memory(false);
    let fill = |memory: &Arc<_>, offset, length| run(memory, Operation::Fill, offset, length);
    assert_eq!(fill(&memory, 0, MIB), Status::OK);
    bench.truncate(MIB / 2);
    assert_eq!(fill(&memory, MIB - 8192, 8192), Status::IO_ERROR);
    bench.truncate(MIB);
    // The file has its pages again, and the mapping must not be taken for them.
    assert_eq!(fill(&memory, MIB - 8192, 8192), Status::IO_ERROR);
    assert_eq!(fill(&memory, MIB - 8192, 0), Status::OK);
    assert_eq!(run(&memory, Operation::Discard, 0, MIB), Status::IO_ERROR);
    assert_eq!(run(&memory, Operation::Crc32c, 0, MIB), Status::IO_ERROR);
    assert_eq!(fill(&memory, 0, MIB / 2), Status::OK);
    // What had been written there is lost.
    assert_eq!(run(&memory, Operation::Flush, 0, 0), Status::IO_ERROR);
    drop(memory);
    let memory = bench.memory(false);
    assert_eq!(fill(&memory, 0, MIB), Status::OK);
    assert_eq!(run(&memory, Operation::Flush, 0, 0), Status::OK);
}

#[test]
fn a_flush_of_a_truncated_file_fails_before_any_fault() {
    let bench = Bench::new();
    let memory = bench.memory(false);
    bench.truncate(MIB / 2);
    assert_eq!(run(&memory, Operation::Flush, 0, 0), Status::IO_ERROR);
    bench.truncate(MIB);
    assert_eq!(run(&memory, Operation::Flush, 0, 0), Status::IO_ERROR);
}

#[test]
fn a_failed_sync_fails_every_later_flush() {
    static SYNCS: AtomicU32 = AtomicU32::new(0);
    fn sync(_file: &File) -> io::Result<()> {
        match SYNCS.fetch_add(1, Ordering::SeqCst) {
            1 => Err(io::Error::from_raw_os_error(libc::EIO)),
            _ => Ok(()),
        }
    }
    let bench = Bench::new();
    let memory = DeviceMemory::with_sync(backing(&bench.path, true), Some(MIB), sync);
    let memory = Arc::new(memory.unwrap());
    let flush = || run(&memory, Operation::Flush, 0, 0);
    assert_eq!(flush(), Status::OK);
    for _ in 0..3 {
        assert_eq!(flush(), Status::IO_ERROR);
    }
    assert_eq!(SYNCS.load(Ordering::SeqCst), 2);
    assert_eq!(run(&memory, Operation::Fill, 0, 4096), Status::OK);
}

#[test]
fn the_name_of_a_new_file_is_made_durable() {
    let bench = Bench::new();
    let open = || {
        let mut synced = None;
        let sync = |directory: &File| {
            synced = Some(FileIdentity::of(directory)?);
            Ok(())
        };
        named(&bench.path, [false, false], Some(MIB), 4096, sync).unwrap();
        synced
    };
    let parent = File::open(bench.path.parent().unwrap()).unwrap();
    assert_eq!(open(), Some(FileIdentity::of(&parent).unwrap()));
    assert_eq!(open(), None);
    // A directory that cannot be synced.
    std::fs::remove_file(&bench.path).unwrap();
    let fail = |_: &File| Err(io::ErrorKind::Other.into());
    let error = named(&bench.path, [false, false], Some(MIB), 4096, fail).unwrap_err();
    assert!(error.to_string().contains("sync the directory"), "{error}");
}
