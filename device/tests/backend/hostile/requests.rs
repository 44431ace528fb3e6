//! Chains that are not requests, and invalid requests.

use std::sync::atomic::{AtomicBool, Ordering};

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use super::{MIB, two_queues};
use crate::support::{Buffer, DATA, FrontEnd, HEADERS, RESPONSES, Request, descriptor_flags};

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
fn ranges_may_cross_regions_but_not_leave_memory() {
    let (_backend, mut front) = two_queues();
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

/// Half of an indirect table in one region, half in the next.
#[test]
fn an_indirect_table_may_cross_regions() {
    let (_backend, mut front) = two_queues();
    let whole = 16 * MIB - 32;
    front.rings[0].tables = whole;
    let header = header(&front, Operation::Fill, 8, 16);
    let chain = [
        header,
        Buffer::readable(0, 0),
        Buffer::readable(0, 0),
        Buffer::writable(RESPONSES, 16),
    ];
    assert_eq!(send(&mut front, &chain).0.status(), Status::OK);
}

/// A descriptor that spans several regions counts once, and there is memory for all its pieces.
#[test]
fn many_descriptors_that_each_cross_regions() {
    let (_backend, mut front) = two_queues();
    front.rings[0].tables = 0x60_0000;
    for count in [40u64, 1022] {
        let mut chain = vec![header(&front, Operation::ReadCrc32c, 0, 2 * count)];
        chain.push(Buffer::writable(RESPONSES, 16));
        chain.extend((0..count).map(|_| Buffer::writable(16 * MIB - 1, 2)));
        let status = send(&mut front, &chain).0.status();
        // The longest would need more pieces than the device has memory for.
        let expected = if count == 40 {
            Status::OK
        } else {
            Status::BAD_REQUEST
        };
        assert_eq!(status, expected, "{count}");
    }
}

#[test]
fn lengths_whose_sum_overflows() {
    let (_backend, mut front) = two_queues();
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
fn writable_before_readable() {
    let (_backend, mut front) = two_queues();
    let header = header(&front, Operation::Nop, 0, 0);
    let chain = [Buffer::writable(RESPONSES, 16), header];
    let (response, written) = send(&mut front, &chain);
    assert_eq!((response.status(), written), (Status::BAD_REQUEST, 16));
}

#[test]
fn chains_without_header_or_response() {
    let (_backend, mut front) = two_queues();
    let header = header(&front, Operation::Nop, 0, 0);
    // Too short for the response: nothing is written.
    for chain in [
        vec![header],
        vec![header, Buffer::writable(RESPONSES, 15)],
        vec![Buffer::readable(HEADERS, 0)],
    ] {
        let (response, written) = send(&mut front, &chain);
        assert_eq!((response.status(), written), (Status::UNWRITTEN, 0));
    }
    // The header is incomplete.
    for length in [0, 1, 31] {
        let chain = [
            Buffer::readable(HEADERS, length),
            Buffer::writable(RESPONSES, 16),
        ];
        let (response, written) = send(&mut front, &chain);
        assert_eq!((response.status(), written), (Status::BAD_REQUEST, 16));
    }
    // The header or the response is outside of guest memory.
    let chain = [
        Buffer::readable(1 << 40, 32),
        Buffer::writable(RESPONSES, 16),
    ];
    assert_eq!(send(&mut front, &chain).0.status(), Status::BAD_ADDRESS);
    let chain = [header, Buffer::writable(1 << 40, 16)];
    assert_eq!(send(&mut front, &chain).1, 0);
}

#[test]
fn chains_at_and_beyond_the_descriptor_limit() {
    let (_backend, mut front) = two_queues();
    // The table has its own address, since it is longer than a slot's.
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
    let (_backend, mut front) = two_queues();
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
fn data_length_mismatches() {
    let (_backend, mut front) = two_queues();
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
/// Whatever mixture it reads, it must not access memory that neither version names.
#[test]
fn requests_modified_while_being_read() {
    let (mut backend, mut front) = two_queues();
    // Neither version of the request names this memory.
    let canary = vec![0xa5; 4096];
    for beyond in [DATA - 4096, DATA + 8192] {
        front.guest.write(beyond, &canary);
    }
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
    for beyond in [DATA - 4096, DATA + 8192] {
        assert!(front.guest.bytes(beyond, 4096) == canary, "{beyond:#x}");
    }
    assert!(backend.is_running());
}

/// A response that the driver has put out of reach is not written: in particular not into the data
/// that follows it.
#[test]
fn a_response_out_of_reach_is_not_written_into_the_data() {
    let (_backend, mut front) = two_queues();
    let data = [0xa5; 64];
    for response in [
        Buffer::writable(1 << 40, 16),
        // Begins in guest memory and ends beyond it.
        Buffer::writable(32 * MIB - 4, 16),
        Buffer::writable(32 * MIB - 15, 16),
    ] {
        front.guest.write(DATA, &data);
        front.guest.write(32 * MIB - 16, &data[..16]);
        let chain = [
            header(&front, Operation::Read, 0, 64),
            response,
            Buffer::writable(DATA, 64),
        ];
        assert_eq!(send(&mut front, &chain).1, 0);
        assert_eq!(front.guest.bytes(DATA, 64), data, "{response:?}");
        assert_eq!(front.guest.bytes(32 * MIB - 16, 16), data[..16]);
    }
    // A split response whose second half is out of reach.
    front.guest.write(DATA, &data);
    let chain = [
        header(&front, Operation::Read, 0, 64),
        Buffer::writable(RESPONSES, 8),
        Buffer::writable(1 << 40, 8),
        Buffer::writable(DATA, 64),
    ];
    assert_eq!(send(&mut front, &chain).1, 0);
    assert_eq!(front.guest.bytes(DATA, 64), data);
}

/// Plain descriptors before an indirect table count like those of the table.
#[test]
fn the_descriptor_limit_holds_for_the_whole_chain() {
    let (_backend, mut front) = two_queues();
    for (plain, entries, status) in [
        (200, 824, Status::OK),
        (200, 825, Status::BAD_REQUEST),
        (200, 1024, Status::BAD_REQUEST),
    ] {
        let table = 0x60_0000;
        let head = header(&front, Operation::Fill, 0, 8);
        let ring = &mut front.rings[0];
        let mut chain = vec![head];
        chain.resize(plain, Buffer::readable(0, 0));
        ring.write_chain(&front.guest, ring.descriptors, 0, &chain);
        let last = u16::try_from(plain - 1).unwrap();
        let next = (chain[plain - 1], descriptor_flags::NEXT, last + 1);
        ring.write_descriptor(&front.guest, ring.descriptors, last, next);
        let length = 16 * u32::try_from(entries).unwrap();
        let indirect = Buffer::readable(table, length);
        let indirect = (indirect, descriptor_flags::INDIRECT, 0);
        ring.write_descriptor(&front.guest, ring.descriptors, last + 1, indirect);
        let mut inside = vec![Buffer::writable(0, 0); entries];
        inside[0] = Buffer::writable(RESPONSES, 16);
        ring.write_chain(&front.guest, table, 0, &inside);
        front.guest.write(RESPONSES, &[0xff; 16]);
        let guest = front.guest.clone();
        front.rings[0].make_available(&guest, 0);
        front.kick(0);
        front.wait(0);
        assert_eq!(front.response(0).status(), status, "{plain} + {entries}");
    }
}
