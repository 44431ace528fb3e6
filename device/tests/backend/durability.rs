//! Memory files: full file systems, and backends that are killed.

use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use vdma_protocol::{Operation, Status};

use crate::support::{Backend, Connect, DATA, DEADLINE, FrontEnd, Request};

const KIB: usize = 1 << 10;

/// The backend, to be run with a file system of 64 KiB mounted at `directory`, which only it sees.
fn in_small_file_system(directory: &Path) -> Command {
    let script = "mount -t tmpfs -o size=64k,mode=0700 none \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(directory)
        .arg(Backend::command().get_program())
        .env("RUST_BACKTRACE", "0")
        .env_remove("RUST_LOG")
        .arg("--memory-file")
        .arg(directory.join("memory"));
    command
}

#[test]
fn a_memory_file_that_cannot_be_allocated_is_refused_at_start_up() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let mut command = in_small_file_system(&small);
    command
        .args(["--memory-size=1M", "--socket-path"])
        .arg(directory.path().join("vdma.sock"));
    let (status, message) = Backend::spawn(command, directory).wait();
    assert_eq!(status.code(), Some(1), "{message}");
    assert!(
        message.contains("cannot allocate all 1048576 bytes"),
        "{message}"
    );
    assert!(message.contains("give --sparse"), "{message}");
}

#[test]
fn a_full_file_system_costs_requests_and_loses_no_acknowledged_byte() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("small");
    fs::create_dir(&small).unwrap();
    let socket = directory.path().join("vdma.sock");
    let mut command = in_small_file_system(&small);
    command
        .args(["--memory-size=1M", "--sparse", "--socket-path"])
        .arg(&socket);
    let mut backend = Backend::spawn(command, directory);
    backend.await_file(&socket);
    let mut front = FrontEnd::connect(&backend.socket());
    // As the backend sees it, whose mount it is.
    let root = format!("/proc/{}/root", backend.pid().as_raw_nonzero());
    let seen = |name| PathBuf::from(format!("{root}{}", small.join(name).display()));

    let write = |offset: usize, length: u32| {
        Request::new(Operation::Write, offset as u64, length.into(), 0).outgoing(DATA, length)
    };
    front.guest.write(DATA, &[0xaa; 16 * KIB]);
    assert_eq!(front.call(0, &write(0, 4096)).0.status(), Status::OK);
    // Fails when the file system is full.
    let _ = fs::write(seen("ballast"), vec![1; 64 * KIB]);
    let lost = write(512 * KIB, 12 * KIB as u32);
    assert_eq!(front.call(0, &lost).0.status(), Status::IO_ERROR);
    fs::remove_file(seen("ballast")).unwrap();
    // What is acknowledged is in the file.
    front.guest.write(DATA, &[0xbb; 16 * KIB]);
    let file = fs::File::open(seen("memory")).unwrap();
    for request in [lost, write(4096, 4096), write(768 * KIB, 8192)] {
        let status = front.call(0, &request).0.status();
        let (offset, length) = (request.header.offset.get(), request.header.length.get());
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let arrived = bytes.iter().all(|&byte| byte == 0xbb);
        assert_eq!(arrived, status == Status::OK, "{status:?} at {offset:#x}");
    }
    let flush = Request::new(Operation::Flush, 0, 0, 0);
    assert_eq!(front.call(0, &flush).0.status(), Status::IO_ERROR);
}

#[test]
fn a_memory_file_can_be_a_descriptor() {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::memfd_create("memory", flags).unwrap());
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let backend = Backend::start(&["--memory-size=1M", "--memory-file", &path]);
    let mut front = FrontEnd::connect(&backend.socket());
    front.guest.write(DATA, b"seen");
    let write = Request::new(Operation::Write, 99, 4, 0).outgoing(DATA, 4);
    assert_eq!(front.call(0, &write).0.status(), Status::OK);
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 99).unwrap();
    assert_eq!(&bytes, b"seen");
    // Whole pages are zeroed where they are: this file system cannot do that for us.
    let discard = Request::new(Operation::Discard, 0, 1 << 20, 0);
    assert_eq!(front.call(0, &discard).0.status(), Status::OK);
    file.read_exact_at(&mut bytes, 99).unwrap();
    assert_eq!(bytes, [0; 4]);
    assert_eq!(file.metadata().unwrap().blocks() * 512, 1 << 20);
}

const BLOCK: usize = 4 * KIB;
const BLOCKS: usize = 64;
const SLOTS: usize = 8;

/// What a block of the file may contain, each block being filled with one byte.
#[derive(Clone)]
struct Block {
    acknowledged: u8,
    /// Submitted since, in this order; any of them may have been carried out, if only in part.
    pending: Vec<u8>,
}

/// Numbers without a pattern (xorshift).
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 32).unwrap()
}

#[test]
fn acknowledged_writes_outlive_a_killed_backend() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory");
    let file = format!("--memory-file={}", path.display());
    let block = Block {
        acknowledged: 0,
        pending: Vec::new(),
    };
    let mut model = vec![block; BLOCKS];
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut acknowledged = 0;
    for _ in 0..20 {
        let backend = start_with(&file);
        let options = Connect {
            shmem: false,
            ..Connect::default()
        };
        let mut front = FrontEnd::connect_with(&backend.socket(), &options);
        let end = Instant::now() + Duration::from_micros(next(&mut state) as u64 % 20_000);
        // Each slot writes to blocks of its own, and now and then flushes.
        let mut targets: [Option<(usize, u8)>; SLOTS] = [None; SLOTS];
        for slot in 0..SLOTS {
            submit(&mut front, &mut model, &mut targets, slot, &mut state);
        }
        front.kick(0);
        let mut killed = false;
        loop {
            while let Some(used) = front.rings[0].pop_used(&front.guest) {
                let slot = used.id as usize;
                let status = front.response(slot as u16).status();
                assert_eq!(status, Status::OK);
                acknowledged += 1;
                if let Some((at, byte)) = targets[slot] {
                    model[at] = Block {
                        acknowledged: byte,
                        pending: Vec::new(),
                    };
                }
                if !killed {
                    submit(&mut front, &mut model, &mut targets, slot, &mut state);
                    front.kick(0);
                }
            }
            if killed {
                break;
            }
            if Instant::now() >= end {
                backend.signal(Signal::KILL);
                killed = true;
                // It may complete more before it is gone.
                await_death(&backend);
            }
        }
        drop(front);
        let (status, log) = backend.wait();
        assert!(!status.success(), "{log}");
        let bytes = fs::read(&path).unwrap();
        for (at, block) in model.iter_mut().enumerate() {
            let found = &bytes[BLOCK * at..BLOCK * (at + 1)];
            let allowed = |byte: &u8| *byte == block.acknowledged || block.pending.contains(byte);
            assert!(found.iter().all(allowed), "block {at}");
            if found.iter().any(|byte| byte != &found[0]) {
                // Torn: the next write decides, and until then any of these.
                continue;
            }
            block.acknowledged = found[0];
            block.pending.clear();
        }
    }
    assert!(acknowledged > 100, "{acknowledged} requests");
}

fn start_with(file: &str) -> Backend {
    Backend::start(&["--memory-size=256K", file])
}

fn await_death(backend: &Backend) {
    let stat = format!("/proc/{}/stat", backend.pid().as_raw_nonzero());
    let begin = Instant::now();
    while fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
        assert!(begin.elapsed() < DEADLINE, "the backend is not killed");
        std::thread::yield_now();
    }
}

/// Submits a FLUSH or a write of a block that belongs to `slot`.
fn submit(
    front: &mut FrontEnd,
    model: &mut [Block],
    targets: &mut [Option<(usize, u8)>; SLOTS],
    slot: usize,
    state: &mut u64,
) {
    let request = if next(state).is_multiple_of(16) {
        targets[slot] = None;
        Request::new(Operation::Flush, 0, 0, 0)
    } else {
        let at = slot + SLOTS * (next(state) % (BLOCKS / SLOTS));
        let byte = next(state) as u8;
        model[at].pending.push(byte);
        targets[slot] = Some((at, byte));
        let data = DATA + (BLOCK * slot) as u64;
        front.guest.write(data, &[byte; BLOCK]);
        Request::new(Operation::Write, (BLOCK * at) as u64, BLOCK as u64, 0)
            .outgoing(data, BLOCK as u32)
    };
    front.submit(0, &request, slot as u16);
}
