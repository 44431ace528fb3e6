//! Guest memory that is truncated, changes, or is device memory itself.

use vdma_protocol::{Operation, Status};
use vhost::VhostBackend;

use super::{MIB, assert_works, connect, two_queues};
use crate::support::{BAR, Backend, DATA, DEADLINE, FrontEnd, Request, await_event};

#[test]
fn guest_memory_truncated_under_load() {
    let (backend, mut front) = two_queues();
    assert_works(&mut front, 0);
    let first = front.guest.table()[1].mmap_handle;
    // SAFETY: the guest's memory keeps the file open.
    let file = unsafe { std::os::fd::BorrowedFd::borrow_raw(first) };
    rustix::fs::ftruncate(file, 4096).unwrap();
    let write = Request::new(Operation::Write, 0, 65_536, 0).outgoing(20 * MIB, 65_536);
    front.submit(0, &write, 0);
    front.kick(0);
    // All rings stop: they share the memory.
    for ring in &front.rings {
        assert!(await_event(&ring.error, DEADLINE));
    }
    drop(front);
    let mut front = connect(&backend);
    assert_works(&mut front, 0);
    drop(front);
    let log = backend.end();
    assert!(log.contains("guest memory was truncated"), "{log}");
}

#[test]
fn memory_file_truncated_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory");
    let backend = Backend::start_in(
        directory,
        &[
            "--memory-size",
            "1M",
            "--memory-file",
            path.to_str().unwrap(),
        ],
    );
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let read = Request::new(Operation::Read, 0, 8192, 0).incoming(DATA, 8192);
    assert_eq!(front.call(0, &read).0.status(), Status::IO_ERROR);
    // The file gets the page back; what was in it is lost all the same.
    file.set_len(MIB).unwrap();
    let write = Request::new(Operation::Write, 4096, 4096, 0).outgoing(DATA, 4096);
    let flush = Request::new(Operation::Flush, 0, 0, 0);
    for request in [&read, &write, &flush] {
        assert_eq!(front.call(0, request).0.status(), Status::IO_ERROR);
    }
    let elsewhere = Request::new(Operation::Read, 8192, 4096, 0).incoming(DATA, 4096);
    assert_eq!(front.call(0, &elsewhere).0.status(), Status::OK);
    drop(front);
    let log = backend.end();
    assert!(log.contains("pages of device memory are missing"), "{log}");
}

/// Neither of two faults in one request hides the other.
#[test]
fn guest_memory_and_memory_file_truncated_under_one_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory");
    let argument = format!("--memory-file={}", path.display());
    let backend = Backend::start_in(directory, &["--memory-size=1M", &argument]);
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let second = front.guest.table()[1].mmap_handle;
    // SAFETY: the guest's memory keeps the file open.
    let guest = unsafe { std::os::fd::BorrowedFd::borrow_raw(second) };
    rustix::fs::ftruncate(guest, 4096).unwrap();
    // First the read of guest memory faults, then the write to device memory.
    let write = Request::new(Operation::Write, 8192, 4096, 0).outgoing(20 * MIB, 4096);
    front.submit(0, &write, 0);
    front.kick(0);
    assert!(await_event(&front.rings[0].error, DEADLINE));
    drop(front);
    let mut front = FrontEnd::connect(&backend.socket());
    let read = Request::new(Operation::Read, 8192, 4096, 0).incoming(DATA, 4096);
    assert_eq!(front.call(0, &read).0.status(), Status::IO_ERROR);
}

#[test]
fn memory_table_changes_under_load() {
    let (_backend, mut front) = two_queues();
    // The front end sets its own table once it has mapped the BAR.
    assert_works(&mut front, 0);
    let whole = front.guest.table();
    let data: Vec<u8> = (1..=200).collect();
    front.guest.write(20 * MIB, &data);
    for round in 0..300 {
        for slot in 0..16 {
            let write = Request::new(Operation::Write, 0, 200, 0).outgoing(20 * MIB, 200);
            front.submit(0, &write, slot);
        }
        front.kick(0);
        // The second region is removed and added; every request sees one table or the other.
        let table = if round % 2 == 0 {
            &whole[..1]
        } else {
            &whole[..]
        };
        front.frontend.set_mem_table(table).unwrap();
        for _ in 0..16 {
            let used = front.wait(0);
            let status = front.response(u16::try_from(used.id).unwrap()).status();
            assert!(
                [Status::OK, Status::BAD_ADDRESS].contains(&status),
                "{status:?}"
            );
        }
        let write = Request::new(Operation::Write, 0, 200, 0).outgoing(20 * MIB, 200);
        let expected = if round % 2 == 0 {
            Status::BAD_ADDRESS
        } else {
            Status::OK
        };
        assert_eq!(front.call(0, &write).0.status(), expected);
    }
}

/// QEMU puts the BAR into the memory table: descriptors can then point at device memory itself.
#[test]
fn overlapping_bar_addresses_behave_as_memmove() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    // The front end added it to the table when it was mapped.
    let bar = BAR;
    let with_bar = front.window.as_ref().unwrap().guest();

    let mut expected: Vec<u8> = (0..64 << 10).map(|i: u32| (i % 251) as u8).collect();
    with_bar.write(bar, &expected);
    let length = 40_000u32;
    for (from, to) in [
        (0, 1),
        (1, 0),
        (0, 4096),
        (4096, 0),
        (100, 100),
        (0, 16 << 10),
    ] {
        // Device memory to the BAR.
        let read = Request::new(Operation::Read, from, length.into(), 0).incoming(bar + to, length);
        assert_eq!(front.call(0, &read).0.status(), Status::OK);
        let (source, target) = (from as usize, to as usize);
        expected.copy_within(source..source + length as usize, target);
        assert!(
            with_bar.bytes(bar, expected.len()) == expected,
            "read {from} {to}"
        );
        // The BAR to device memory.
        let write =
            Request::new(Operation::Write, to, length.into(), 0).outgoing(bar + from, length);
        assert_eq!(front.call(0, &write).0.status(), Status::OK);
        expected.copy_within(source..source + length as usize, target);
        assert!(
            with_bar.bytes(bar, expected.len()) == expected,
            "write {from} {to}"
        );
        // The BAR to the BAR.
        let copy = Request::new(Operation::Copy, 0, length.into(), 0)
            .outgoing(bar + from, length)
            .incoming(bar + to, length);
        assert_eq!(front.call(0, &copy).0.status(), Status::OK);
        expected.copy_within(source..source + length as usize, target);
        assert!(
            with_bar.bytes(bar, expected.len()) == expected,
            "copy {from} {to}"
        );
    }
}

/// A front end shares only the guest memory that was made for that (`share=on` in QEMU). Requests
/// into the rest fail one by one, and the log names the remedy.
#[test]
fn guest_memory_that_is_not_shared() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    let shared = front.guest.table();
    front.frontend.set_mem_table(&shared[..1]).unwrap();
    for _ in 0..3 {
        let read = Request::new(Operation::Read, 0, 64, 0).incoming(20 * MIB, 64);
        assert_eq!(front.call(0, &read).0.status(), Status::BAD_ADDRESS);
        assert_works(&mut front, 0);
    }
    drop(front);
    let log = backend.end();
    assert_eq!(log.matches("share=on").count(), 1, "{log}");
    // A ring there cannot be used at all.
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    front.stop_ring(0);
    front.frontend.set_mem_table(&shared[1..]).unwrap();
    let config = vhost::VringConfigData {
        queue_max_size: 1024,
        queue_size: 256,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x3000,
        avail_ring_addr: 0x2000,
        log_addr: None,
    };
    front.frontend.set_vring_addr(0, &config).unwrap_err();
    drop(front);
    let log = backend.end();
    assert_eq!(log.matches("share=on").count(), 1, "{log}");
}
