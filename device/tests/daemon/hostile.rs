//! Guests and front ends that break the rules, one test for each class of bug that such devices
//! have had. The daemon answers or stops the one ring concerned, and serves everybody else.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{
    BAR, Buffer, Connect, DATA, DEADLINE, Daemon, FrontEnd, HEADERS, RESPONSES, Request,
    await_event, descriptor_flags,
};
use vdma_protocol::{Operation, RequestHeader, Response, Status};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

const MIB: u64 = 1 << 20;

fn two_queues() -> (Daemon, FrontEnd) {
    let daemon = Daemon::start(&["--memory-size", "1M", "--num-queues", "2"]);
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    let front = FrontEnd::connect_with(&daemon.socket(), &options);
    (daemon, front)
}

fn assert_works(front: &mut FrontEnd, queue: usize) {
    let (response, _) = front.call(queue, &Request::new(Operation::Nop, 0, 0, 0));
    assert_eq!(response.status(), Status::OK);
}

/// Does `corrupt` to queue 0 and expects it to stop with an error notification and one log line,
/// queue 1 to go on, and queue 0 to work again once it has been reset.
fn assert_stops(corrupt: impl FnOnce(&mut FrontEnd), reason: &str) {
    let (daemon, mut front) = two_queues();
    assert_works(&mut front, 0);
    let served = front.rings[0].next_used;
    corrupt(&mut front);
    front.kick(0);
    assert!(
        await_event(&front.rings[0].error, DEADLINE),
        "no error notification"
    );
    assert_eq!(front.rings[0].used_index(&front.guest), served);
    assert_works(&mut front, 1);
    front.stop_ring(0);
    front.stop_ring(1);
    front.start();
    assert_works(&mut front, 0);
    drop(front);
    let (status, log) = daemon.end();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("ring corrupt").count(), 1, "{log}");
    assert!(log.contains(reason), "{log}");
}

/// Sends one chain as it is and returns the response and the used length.
fn send(front: &mut FrontEnd, chain: &[Buffer]) -> (Response, u32) {
    front.guest.write(
        RESPONSES,
        &Response::new(Status::UNWRITTEN, 0, 0).to_bytes(),
    );
    let guest = front.guest.clone();
    front.rings[0].submit(&guest, chain, 0);
    front.kick(0);
    let used = front.wait(0);
    (front.response(0), used.written)
}

fn header(front: &FrontEnd, operation: Operation, offset: u64, length: u64) -> Buffer {
    let bytes = RequestHeader::new(operation, offset, length, 0).to_bytes();
    front.guest.write(HEADERS, &bytes);
    Buffer::readable(HEADERS, 32)
}

#[test]
fn available_index_beyond_the_queue() {
    assert_stops(
        |front| {
            let ring = &front.rings[0];
            let index = ring.next_available.wrapping_add(ring.size + 1);
            front.guest.write(ring.available + 2, &index.to_le_bytes());
        },
        "the ring has 256 entries",
    );
}

#[test]
fn head_beyond_the_table() {
    assert_stops(
        |front| {
            let guest = front.guest.clone();
            front.rings[0].make_available(&guest, 256);
        },
        "descriptor 256 is beyond",
    );
}

#[test]
fn next_beyond_the_table() {
    assert_stops(
        |front| {
            let guest = front.guest.clone();
            let ring = &mut front.rings[0];
            let buffer = Buffer::readable(HEADERS, 32);
            let next = (buffer, descriptor_flags::NEXT, 60_000);
            ring.write_descriptor(&guest, ring.descriptors, 0, next);
            ring.make_available(&guest, 0);
        },
        "descriptor 60000 is beyond",
    );
}

#[test]
fn circular_chain() {
    assert_stops(
        |front| {
            let guest = front.guest.clone();
            let ring = &mut front.rings[0];
            let buffer = Buffer::readable(HEADERS, 32);
            for (index, next) in [(0, 1), (1, 0)] {
                let descriptor = (buffer, descriptor_flags::NEXT, next);
                ring.write_descriptor(&guest, ring.descriptors, index, descriptor);
            }
            ring.make_available(&guest, 0);
        },
        "circular",
    );
}

#[test]
fn circular_indirect_chain() {
    assert_stops(
        |front| {
            let guest = front.guest.clone();
            let ring = &mut front.rings[0];
            let buffer = Buffer::readable(HEADERS, 32);
            let to_itself = (buffer, descriptor_flags::NEXT, 0);
            ring.write_descriptor(&guest, ring.tables, 0, to_itself);
            let table = Buffer::readable(ring.tables, 64);
            let indirect = (table, descriptor_flags::INDIRECT, 0);
            ring.write_descriptor(&guest, ring.descriptors, 0, indirect);
            ring.make_available(&guest, 0);
        },
        "circular",
    );
}

#[test]
fn indirect_inside_indirect() {
    assert_stops(
        |front| {
            let guest = front.guest.clone();
            let ring = &mut front.rings[0];
            let table = Buffer::readable(ring.tables, 16);
            let indirect = (table, descriptor_flags::INDIRECT, 0);
            ring.write_descriptor(&guest, ring.tables, 0, indirect);
            ring.write_descriptor(&guest, ring.descriptors, 0, indirect);
            ring.make_available(&guest, 0);
        },
        "an indirect table where none may be",
    );
}

#[test]
fn indirect_with_next() {
    assert_stops(
        |front| {
            let guest = front.guest.clone();
            let ring = &mut front.rings[0];
            let table = Buffer::readable(ring.tables, 16);
            let flags = descriptor_flags::INDIRECT | descriptor_flags::NEXT;
            ring.write_descriptor(&guest, ring.descriptors, 0, (table, flags, 1));
            ring.make_available(&guest, 0);
        },
        "an indirect table where none may be",
    );
}

#[test]
fn indirect_table_of_odd_length() {
    for length in [0, 8, 24, u32::MAX] {
        assert_stops(
            |front| {
                let guest = front.guest.clone();
                let ring = &mut front.rings[0];
                let table = Buffer::readable(ring.tables, length);
                let indirect = (table, descriptor_flags::INDIRECT, 0);
                ring.write_descriptor(&guest, ring.descriptors, 0, indirect);
                ring.make_available(&guest, 0);
            },
            "not a whole number of descriptors",
        );
    }
}

#[test]
fn indirect_table_outside_of_memory() {
    for address in [1 << 40, u64::MAX - 15] {
        assert_stops(
            |front| {
                let guest = front.guest.clone();
                let ring = &mut front.rings[0];
                let table = Buffer::readable(address, 64);
                let indirect = (table, descriptor_flags::INDIRECT, 0);
                ring.write_descriptor(&guest, ring.descriptors, 0, indirect);
                ring.make_available(&guest, 0);
            },
            "indirect table at",
        );
    }
}

#[test]
fn ranges_may_cross_regions_but_not_leave_memory() {
    let (_daemon, mut front) = two_queues();
    // The two regions of guest memory meet at 16 MiB and end at 32 MiB.
    let data: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    front.guest.write(16 * MIB - 5000, &data);
    let write = Request::new(Operation::Write, 0, 10_000, 0).outgoing(16 * MIB - 5000, 10_000);
    assert_eq!(front.call(0, &write).0.status(), Status::OK);
    let read = Request::new(Operation::Read, 0, 10_000, 0).incoming(DATA, 10_000);
    assert_eq!(front.call(0, &read).0.status(), Status::OK);
    assert_eq!(front.guest.bytes(DATA, 10_000), data);
    for address in [
        32 * MIB - 9_999,
        32 * MIB,
        1 << 40,
        u64::MAX - 100,
        u64::MAX,
    ] {
        let write = Request::new(Operation::Write, 0, 10_000, 0).outgoing(address, 10_000);
        let (response, written) = front.call(0, &write);
        assert_eq!((response.status(), written), (Status::BAD_ADDRESS, 16));
        let read = Request::new(Operation::Read, 0, 10_000, 0).incoming(address, 10_000);
        let (response, written) = front.call(0, &read);
        assert_eq!((response.status(), written), (Status::BAD_ADDRESS, 16));
    }
}

#[test]
fn lengths_whose_sum_overflows() {
    let (_daemon, mut front) = two_queues();
    // 32 bits overflow in the sum of the descriptors, each of which is inside of memory.
    let mut chain = vec![header(&front, Operation::Write, 0, 0)];
    chain.extend(std::iter::repeat_n(Buffer::readable(0, 32 << 20), 128));
    chain.push(Buffer::writable(RESPONSES, 16));
    assert_eq!(send(&mut front, &chain).0.status(), Status::BAD_LENGTH);
    // 64 bits overflow in offset + length.
    for (offset, length, status) in [
        (u64::MAX, 1, Status::BAD_RANGE),
        (u64::MAX - 3, 8, Status::BAD_RANGE),
        (MIB, 1, Status::BAD_RANGE),
        (MIB - 1, 2, Status::BAD_RANGE),
        (0, u64::MAX, Status::BAD_LENGTH),
        (0, 1 << 32, Status::BAD_LENGTH),
        (0, (1 << 30) + 1, Status::BAD_LENGTH),
    ] {
        for operation in [Operation::Fill, Operation::Move, Operation::Discard] {
            let (response, _) = front.call(0, &Request::new(operation, offset, length, 0));
            assert_eq!(response.status(), status, "{operation:?} {offset} {length}");
        }
    }
    let beyond = Request::new(Operation::Move, 0, 8, u64::MAX - 3);
    assert_eq!(front.call(0, &beyond).0.status(), Status::BAD_RANGE);
}

#[test]
fn write_only_before_read_only() {
    let (_daemon, mut front) = two_queues();
    let header = header(&front, Operation::Nop, 0, 0);
    let chain = [Buffer::writable(RESPONSES, 16), header];
    let (response, written) = send(&mut front, &chain);
    assert_eq!((response.status(), written), (Status::BAD_REQUEST, 16));
}

#[test]
fn chains_that_are_no_request() {
    let (_daemon, mut front) = two_queues();
    let header = header(&front, Operation::Nop, 0, 0);
    // No room for the response: nothing is written.
    for chain in [
        vec![header],
        vec![header, Buffer::writable(RESPONSES, 15)],
        vec![Buffer::readable(HEADERS, 0)],
    ] {
        let (response, written) = send(&mut front, &chain);
        assert_eq!((response.status(), written), (Status::UNWRITTEN, 0));
    }
    // The header is cut short.
    for length in [0, 1, 31] {
        let chain = [
            Buffer::readable(HEADERS, length),
            Buffer::writable(RESPONSES, 16),
        ];
        let (response, written) = send(&mut front, &chain);
        assert_eq!((response.status(), written), (Status::BAD_REQUEST, 16));
    }
    // The header or the response is out of reach.
    let chain = [
        Buffer::readable(1 << 40, 32),
        Buffer::writable(RESPONSES, 16),
    ];
    assert_eq!(send(&mut front, &chain).0.status(), Status::BAD_ADDRESS);
    let chain = [header, Buffer::writable(1 << 40, 16)];
    assert_eq!(send(&mut front, &chain).1, 0);
}

#[test]
fn chains_of_the_most_descriptors_and_of_more() {
    let (_daemon, mut front) = two_queues();
    // The table has a place of its own: it is longer than a slot's.
    front.rings[0].tables = 0x60_0000;
    let bytes = Response::SIZE as u64;
    for (count, status) in [
        (1024, Status::OK),
        (1025, Status::BAD_REQUEST),
        (5000, Status::BAD_REQUEST),
    ] {
        let mut chain = vec![header(&front, Operation::Read, 0, count - 2)];
        chain.push(Buffer::writable(RESPONSES, 16));
        for index in 0..count - 2 {
            chain.push(Buffer::writable(DATA + bytes * index, 1));
        }
        assert_eq!(send(&mut front, &chain).0.status(), status, "{count}");
    }
}

#[test]
fn unknown_operations_and_flags() {
    let (_daemon, mut front) = two_queues();
    for code in [14u16, 255, 0x8000, u16::MAX] {
        let mut bytes = RequestHeader::new(Operation::Nop, 0, 0, 0).to_bytes();
        bytes[..2].copy_from_slice(&code.to_le_bytes());
        front.guest.write(HEADERS, &bytes);
        let chain = [
            Buffer::readable(HEADERS, 32),
            Buffer::writable(RESPONSES, 16),
        ];
        assert_eq!(send(&mut front, &chain).0.status(), Status::UNSUPPORTED);
    }
    for bit in 0..16 {
        let mut bytes = RequestHeader::new(Operation::Nop, 0, 0, 0).to_bytes();
        bytes[2..4].copy_from_slice(&(1u16 << bit).to_le_bytes());
        front.guest.write(HEADERS, &bytes);
        let chain = [
            Buffer::readable(HEADERS, 32),
            Buffer::writable(RESPONSES, 16),
        ];
        assert_eq!(send(&mut front, &chain).0.status(), Status::BAD_FLAGS);
    }
    // Reserved bytes are ignored.
    let mut bytes = RequestHeader::new(Operation::Nop, 0, 0, 0).to_bytes();
    bytes[4..8].fill(0xff);
    front.guest.write(HEADERS, &bytes);
    let chain = [
        Buffer::readable(HEADERS, 32),
        Buffer::writable(RESPONSES, 16),
    ];
    assert_eq!(send(&mut front, &chain).0.status(), Status::OK);
}

#[test]
fn data_of_another_length_than_the_request() {
    let (_daemon, mut front) = two_queues();
    for operation in Operation::ALL {
        for (outgoing, incoming) in [
            (7, 0),
            (0, 7),
            (7, 7),
            (9, 0),
            (0, 9),
            (9, 9),
            (8, 9),
            (9, 8),
        ] {
            let mut request = Request::new(operation, 0, 8, 0);
            if outgoing > 0 {
                request = request.outgoing(DATA, outgoing);
            }
            if incoming > 0 {
                request = request.incoming(DATA + 64, incoming);
            }
            let (response, written) = front.call(0, &request);
            let expected = (Status::BAD_LENGTH, 0, 16);
            let seen = (response.status(), response.transferred.get(), written);
            assert_eq!(seen, expected, "{operation:?} {outgoing} {incoming}");
        }
    }
}

/// Double fetch: another CPU changes descriptors, table and header while the device reads them.
/// Whatever mixture it sees, it must not reach beyond what one of the versions allows.
#[test]
fn requests_that_change_while_they_are_read() {
    let (mut daemon, mut front) = two_queues();
    let canary = vec![0xa5; 4096];
    front.guest.write(DATA + 4096, &canary);
    let ring = &front.rings[0];
    let (table, descriptors) = (ring.tables, ring.descriptors);
    let stop = AtomicBool::new(false);
    let guest = front.guest.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for length in [4096u64, u64::MAX, 4096, 0, 4096, 1 << 29] {
                    guest.write(HEADERS + 16, &length.to_le_bytes());
                    let short = u32::try_from(length & 0xffff_ffff).unwrap();
                    guest.write(table + 2 * 16 + 8, &short.to_le_bytes());
                    guest.write(table + 2 * 16, &(DATA + (length & 0xfff)).to_le_bytes());
                    guest.write(table + 2 * 16, &DATA.to_le_bytes());
                    guest.write(descriptors + 8, &48u32.to_le_bytes());
                }
            }
        });
        let mut served = 0;
        for _ in 0..20_000 {
            let read = Request::new(Operation::Read, 0, 4096, 0).incoming(DATA, 4096);
            let (response, written) = front.call(0, &read);
            served += u32::from(response.status() == Status::OK);
            let transferred = response.transferred.get();
            assert!(written == 16 + transferred, "{written} for {transferred}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(served > 0);
    });
    assert!(daemon.is_running());
}

#[test]
fn rings_outside_of_memory_or_misaligned() {
    let (daemon, mut front) = two_queues();
    assert_works(&mut front, 1);
    // Inside of memory at its beginning, beyond at its end.
    front.stop_ring(0);
    let end = 32 * MIB;
    front.rings[0].descriptors = end - 16;
    front.start_ring(0);
    assert!(await_event(&front.rings[0].error, DEADLINE));
    assert_works(&mut front, 1);
    // Across two regions, which are not adjacent in the daemon.
    front.stop_ring(0);
    front.rings[0].descriptors = 16 * MIB - 16;
    front.start_ring(0);
    assert!(await_event(&front.rings[0].error, DEADLINE));
    assert_works(&mut front, 1);
    drop(front);
    let (status, log) = daemon.end();
    assert!(status.success());
    assert!(
        log.contains("descriptor table at 0x1fffff0 is misaligned or outside"),
        "{log}"
    );
}

#[test]
fn queue_sizes_that_are_none() {
    let daemon = Daemon::start(&["--memory-size", "1M", "--queue-size", "256"]);
    // The library answers these itself and closes the connection, or leaves the queue alone.
    for size in [0, 3, 100, 255, 257, 512, 65_535] {
        let mut front = FrontEnd::connect(&daemon.socket());
        assert_works(&mut front, 0);
        front.stop_ring(0);
        if front.frontend.set_vring_num(0, size).is_ok() {
            let ring = &front.rings[0];
            front.frontend.set_vring_kick(0, &ring.kick).unwrap();
            front.frontend.set_vring_err(0, &ring.error).unwrap();
            front.kick(0);
            assert!(await_event(&front.rings[0].error, DEADLINE), "size {size}");
        }
    }
    let mut front = FrontEnd::connect(&daemon.socket());
    assert_works(&mut front, 0);
}

#[test]
fn ring_messages_early_repeated_and_out_of_range() {
    let mut daemon = Daemon::start(&["--memory-size", "1M"]);
    let options = Connect::default();
    let config = VringConfigData {
        queue_max_size: 1024,
        queue_size: 256,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x3000,
        avail_ring_addr: 0x2000,
        log_addr: None,
    };
    // Addresses before there is a memory table.
    let front = FrontEnd::handshake(&daemon.socket(), &options);
    front.frontend.set_vring_num(0, 256).unwrap();
    front.frontend.set_vring_addr(0, &config).unwrap_err();
    drop(front);
    // A kick before anything else, and enabling what was never set up.
    let mut front = FrontEnd::handshake(&daemon.socket(), &options);
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    front.frontend.set_features(options.features).unwrap();
    front.frontend.set_vring_kick(0, &event).unwrap();
    front.frontend.set_vring_enable(0, true).unwrap();
    event.write(1).unwrap();
    drop(front);
    // The same messages again and again while the ring runs: nothing is lost.
    let mut front = FrontEnd::connect(&daemon.socket());
    for _ in 0..100 {
        assert_works(&mut front, 0);
        front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), 0);
        let ring = &mut front.rings[0];
        ring.kick = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        ring.call = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        front.frontend.set_vring_call(0, &ring.call).unwrap();
        front.frontend.set_vring_kick(0, &ring.kick).unwrap();
        front.frontend.set_vring_enable(0, true).unwrap();
        front.kick(0);
        assert_eq!(front.wait(0).id, 0);
        front.frontend.set_vring_enable(0, false).unwrap();
        front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), 0);
        front.kick(0);
        front.frontend.set_vring_enable(0, true).unwrap();
        assert_eq!(front.wait(0).id, 0);
    }
    assert!(daemon.is_running());
}

#[test]
fn kick_descriptors_that_are_no_event_counters() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let (mut daemon, mut front) = two_queues();
    let (end, other) = UnixStream::pair().unwrap();
    drop(other);
    // SAFETY: the descriptor was just given up by its owner.
    let closed = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(end.into_raw_fd()) };
    let file = tempfile::tempfile().unwrap();
    // SAFETY: as above.
    let file = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(file.into_raw_fd()) };
    for kick in [closed, file] {
        front.frontend.set_vring_kick(0, &kick).unwrap();
        assert_works(&mut front, 1);
    }
    let ring = &front.rings[0];
    front.frontend.set_vring_kick(0, &ring.kick).unwrap();
    assert_works(&mut front, 0);
    assert!(daemon.is_running());
}

#[test]
fn a_call_descriptor_that_is_full_and_blocks() {
    let (daemon, mut front) = two_queues();
    let full = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    front.frontend.set_vring_call(0, &full).unwrap();
    let _ = full.read();
    full.write(u64::MAX - 1).unwrap();
    for slot in 0..4 {
        front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), slot);
        front.kick(0);
    }
    assert_eq!(
        front.stop_ring(0),
        u32::from(front.rings[0].used_index(&front.guest))
    );
    drop(front);
    let mut front = FrontEnd::connect_with(
        &daemon.socket(),
        &Connect {
            num_queues: 2,
            ..Connect::default()
        },
    );
    assert_works(&mut front, 0);
}

#[test]
fn memory_cut_off_under_load() {
    let (daemon, mut front) = two_queues();
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
    let mut front = FrontEnd::connect_with(
        &daemon.socket(),
        &Connect {
            num_queues: 2,
            ..Connect::default()
        },
    );
    assert_works(&mut front, 0);
    drop(front);
    let (status, log) = daemon.end();
    assert!(status.success());
    assert!(log.contains("guest memory has vanished"), "{log}");
}

#[test]
fn memory_file_cut_off_under_load() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory");
    let daemon = Daemon::start_in(
        directory,
        &[
            "--memory-size",
            "1M",
            "--memory-file",
            path.to_str().unwrap(),
        ],
    );
    let mut front = FrontEnd::connect(&daemon.socket());
    assert_works(&mut front, 0);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    let read = Request::new(Operation::Read, 0, 8192, 0).incoming(DATA, 8192);
    assert_eq!(front.call(0, &read).0.status(), Status::IO_ERROR);
    file.set_len(MIB).unwrap();
    assert_eq!(front.call(0, &read).0.status(), Status::OK);
}

#[test]
fn memory_table_changes_under_load() {
    let (_daemon, mut front) = two_queues();
    // The front end sets a table of its own when it has mapped the BAR.
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
        // The second region goes and comes back; every request sees one or the other.
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
fn addresses_in_the_bar_overlap_as_memmove() {
    let daemon = Daemon::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&daemon.socket());
    assert_works(&mut front, 0);
    // The front end has put it there once it was mapped.
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

#[test]
fn a_second_front_end_waits_for_the_first() {
    let daemon = Daemon::start(&["--memory-size", "1M"]);
    let mut first = FrontEnd::connect(&daemon.socket());
    assert_works(&mut first, 0);
    let socket = daemon.socket();
    let second = std::thread::spawn(move || {
        let mut second = FrontEnd::connect(&socket);
        assert_works(&mut second, 0);
    });
    assert_works(&mut first, 0);
    drop(first);
    second.join().unwrap();
}

#[test]
fn front_ends_that_come_and_go_leave_nothing_behind() {
    let daemon = Daemon::start(&["--memory-size", "1M", "--num-queues", "2"]);
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    let process = format!("/proc/{}", daemon.pid().as_raw_nonzero());
    let count = |what: &str| {
        std::fs::read_dir(format!("{process}/{what}"))
            .unwrap()
            .count()
    };
    let visit = || {
        let mut front = FrontEnd::connect_with(&daemon.socket(), &options);
        assert_works(&mut front, 1);
    };
    // What there is with one front end connected, which the daemon has sorted out once a request
    // has been served.
    let connected = |visits: usize| {
        (0..visits).for_each(|_| visit());
        let mut front = FrontEnd::connect_with(&daemon.socket(), &options);
        assert_works(&mut front, 0);
        let begin = std::time::Instant::now();
        move || {
            let _ = &front;
            assert!(begin.elapsed() < DEADLINE);
            (count("fd"), count("task"))
        }
    };
    let first = {
        let look = connected(1);
        look()
    };
    let look = connected(200);
    // The thread of the last one's BAR may still be about to end, now as in the first look.
    while look().0 > first.0 || look().1 > first.1 {
        std::thread::yield_now();
    }
}

#[test]
fn a_front_end_that_never_speaks_gives_way() {
    let daemon = Daemon::start(&["--memory-size", "1M"]);
    let silent = UnixStream::connect(daemon.socket()).unwrap();
    let mut front = FrontEnd::connect(&daemon.socket());
    assert_works(&mut front, 0);
    drop(silent);
}

#[test]
fn a_front_end_that_never_answers_about_the_bar() {
    let daemon = Daemon::start(&["--memory-size", "1M"]);
    let deaf = Connect::default();
    let held = deaf.map_answer.lock().unwrap();
    for _ in 0..3 {
        // Goes away with the question open; its end of the channel stays.
        drop(FrontEnd::connect_with(&daemon.socket(), &deaf));
    }
    let mut front = FrontEnd::connect(&daemon.socket());
    assert_works(&mut front, 0);
    assert_eq!(front.config_word(36), vdma_protocol::STATE_BAR_MAPPED);
    let (status, log) = daemon.end();
    assert!(status.success(), "{log}");
    drop(held);
}

#[test]
fn messages_cut_short_and_nonsense() {
    let mut daemon = Daemon::start(&["--memory-size", "1M"]);
    let header =
        |request: u32, flags: u32, size: u32| [request, flags, size].map(u32::to_le_bytes).concat();
    let cases: Vec<Vec<u8>> = vec![
        vec![],
        vec![1],
        header(1, 1, 0)[..11].to_vec(),
        header(5, 1, 400),
        header(5, 1, u32::MAX),
        header(0, 0, 0),
        header(u32::MAX, u32::MAX, 8),
        vec![0xff; 4096],
        [header(8, 1, 8), vec![0xff; 7]].concat(),
        [header(8, 1, 8), vec![0xff; 8]].concat(),
        [header(24, 1, 12), vec![0xff; 12]].concat(),
    ];
    for bytes in cases {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 64]);
        drop(stream);
        let mut front = FrontEnd::connect(&daemon.socket());
        assert_works(&mut front, 0);
    }
    assert!(daemon.is_running());
}

#[test]
fn a_guest_cannot_flood_the_log() {
    let (daemon, mut front) = two_queues();
    for _ in 0..100 {
        let guest = front.guest.clone();
        front.rings[0].make_available(&guest, 9999);
        front.kick(0);
        assert!(await_event(&front.rings[0].error, DEADLINE));
        front.stop_ring(0);
        front.stop_ring(1);
        front.start();
    }
    drop(front);
    let (_, log) = daemon.end();
    assert!(log.matches("ring corrupt").count() <= 20, "{log}");
}
