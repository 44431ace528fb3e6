//! Clauses of the specification (`protocol/SPEC.md`, section 10) that no other test shows.

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use crate::support::{
    Backend, Buffer, Connect, DATA, FrontEnd, HEADERS, RESPONSES, Request, descriptor_flags,
};

const MIB: u64 = 1 << 20;
/// No guest memory is here.
const UNREACHABLE: u64 = 1 << 40;

fn connect() -> (Backend, FrontEnd) {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let front = FrontEnd::connect(&backend.socket());
    (backend, front)
}

/// Writes a header, and the response that a device which does nothing leaves.
fn prepare(front: &FrontEnd, header: RequestHeader) {
    front.guest.write(HEADERS, &header.to_bytes());
    let unwritten = Response::new(Status::UNWRITTEN, 0, 0).to_bytes();
    front.guest.write(RESPONSES, &unwritten);
}

/// Sends `chain` by an indirect table, and returns the status and the used length.
fn send(front: &mut FrontEnd, chain: &[Buffer]) -> (Status, u32) {
    let guest = front.guest.clone();
    front.rings[0].submit(&guest, chain, 0);
    finish(front)
}

/// Waits for the request that has been made available.
fn finish(front: &mut FrontEnd) -> (Status, u32) {
    front.kick(0);
    let used = front.wait(0);
    (front.response(0).status(), used.written)
}

const HEADER: Buffer = Buffer {
    address: HEADERS,
    length: 32,
    writable: false,
};
const RESPONSE: Buffer = Buffer {
    address: RESPONSES,
    length: 16,
    writable: true,
};

#[test]
fn empty_descriptors_are_ignored() {
    let (_backend, mut front) = connect();
    let nop = RequestHeader::new(Operation::Nop, 0, 0, 0);
    for chain in [
        // A readable descriptor may follow a writable one that is empty.
        vec![Buffer::writable(RESPONSES, 0), HEADER, RESPONSE],
        vec![HEADER, RESPONSE, Buffer::readable(HEADERS, 0)],
        // The address of an empty descriptor does not matter.
        vec![HEADER, Buffer::readable(UNREACHABLE, 0), RESPONSE],
        vec![HEADER, RESPONSE, Buffer::writable(u64::MAX, 0)],
    ] {
        prepare(&front, nop);
        // An empty readable descriptor after the response is out of order all the same.
        let misplaced = chain[2].length == 0 && !chain[2].writable;
        let expected = if misplaced {
            Status::BAD_REQUEST
        } else {
            Status::OK
        };
        assert_eq!(send(&mut front, &chain), (expected, 16), "{chain:?}");
    }
}

#[test]
fn an_empty_range_may_be_at_the_end_but_not_beyond() {
    let (_backend, mut front) = connect();
    for operation in Operation::ALL {
        let shape = operation.shape();
        for (at, inside) in [(MIB, true), (MIB + 1, false), (u64::MAX, false)] {
            let expect = |named: bool| match named && !inside {
                true => Status::BAD_RANGE,
                false => Status::OK,
            };
            let request = Request::new(operation, at, 0, 0);
            let (response, written) = front.call(0, &request);
            let expected = (expect(shape.has_range()), 16);
            assert_eq!((response.status(), written), expected, "{operation:?} {at}");
            let request = Request::new(operation, 0, 0, at);
            let (response, written) = front.call(0, &request);
            let expected = (expect(shape.has_second_range()), 16);
            assert_eq!((response.status(), written), expected, "{operation:?} {at}");
        }
    }
}

#[test]
fn transferred_is_the_length_even_where_it_is_ignored() {
    let (_backend, mut front) = connect();
    for operation in [Operation::Nop, Operation::Flush] {
        for length in [1, MIB + 1, 1 << 30] {
            let request = Request::new(operation, u64::MAX, length, u64::MAX);
            let (response, written) = front.call(0, &request);
            let expected = Response::new(Status::OK, u32::try_from(length).unwrap(), 0);
            assert_eq!(
                (response, written),
                (expected, 16),
                "{operation:?} {length}"
            );
        }
        let request = Request::new(operation, 0, (1 << 30) + 1, 0);
        assert_eq!(front.call(0, &request).0.status(), Status::BAD_LENGTH);
    }
}

#[test]
fn the_first_defect_of_a_chain_decides() {
    let (_backend, mut front) = connect();
    let unreachable = Buffer::readable(UNREACHABLE, 1);
    let late = Buffer::readable(DATA, 1);
    for (chain, status) in [
        (
            vec![HEADER, unreachable, RESPONSE, late],
            Status::BAD_ADDRESS,
        ),
        (
            vec![HEADER, RESPONSE, late, unreachable],
            Status::BAD_REQUEST,
        ),
        // That the header is cut short counts only when every descriptor is sound.
        (
            vec![Buffer::readable(HEADERS, 31), unreachable, RESPONSE],
            Status::BAD_ADDRESS,
        ),
        (
            vec![Buffer::readable(HEADERS, 31), RESPONSE],
            Status::BAD_REQUEST,
        ),
    ] {
        prepare(&front, RequestHeader::new(Operation::Nop, 0, 0, 0));
        assert_eq!(send(&mut front, &chain), (status, 16), "{chain:?}");
    }
}

#[test]
fn checks_come_in_the_specified_order() {
    let (_backend, mut front) = connect();
    let mut header = RequestHeader::new(Operation::Read, MIB, (1 << 30) + 1, 0);
    header.flags = 1.into();
    header.operation = 14.into();
    let mut next = |header: RequestHeader| {
        prepare(&front, header);
        send(&mut front, &[HEADER, RESPONSE]).0
    };
    assert_eq!(next(header), Status::UNSUPPORTED);
    header.operation = Operation::Read.code().into();
    assert_eq!(next(header), Status::BAD_FLAGS);
    header.flags = 0.into();
    assert_eq!(next(header), Status::BAD_LENGTH);
    // Neither is the data that READ needs there, nor is the range in device memory.
    header.length = 1.into();
    assert_eq!(next(header), Status::BAD_LENGTH);
    header.operation = Operation::Fill.code().into();
    assert_eq!(next(header), Status::BAD_RANGE);
    header.offset = 0.into();
    assert_eq!(next(header), Status::OK);
}

#[test]
fn an_indirect_chain_may_be_longer_than_the_queue() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect {
        queue_size: 4,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    let count = 1022;
    let mut chain = vec![HEADER, RESPONSE];
    chain.extend((0..count).map(|at| Buffer::writable(DATA + at, 1)));
    front.rings[0].tables = 0x60_0000;
    prepare(&front, RequestHeader::new(Operation::Read, 0, count, 0));
    let written = 16 + u32::try_from(count).unwrap();
    assert_eq!(send(&mut front, &chain), (Status::OK, written));
}

#[test]
fn unused_entries_of_an_indirect_table_are_ignored() {
    let (_backend, mut front) = connect();
    let ring = &mut front.rings[0];
    ring.tables = 0x60_0000;
    let guest = front.guest.clone();
    let junk = (
        Buffer::writable(UNREACHABLE, 1),
        descriptor_flags::INDIRECT,
        0,
    );
    for index in 0..3000 {
        ring.write_descriptor(&guest, ring.tables, index, junk);
    }
    ring.write_chain(&guest, ring.tables, 0, &[HEADER, RESPONSE]);
    let table = Buffer::readable(ring.tables, 3000 * 16);
    let flags = descriptor_flags::INDIRECT;
    ring.write_descriptor(&guest, ring.descriptors, 0, (table, flags, 0));
    ring.make_available(&guest, 0);
    prepare(&front, RequestHeader::new(Operation::Nop, 0, 0, 0));
    assert_eq!(finish(&mut front), (Status::OK, 16));
}

/// Virtio 1.2, section 2.7.5.3.2: plain descriptors may precede an indirect one, whose WRITE flag
/// means nothing.
#[test]
fn plain_descriptors_may_precede_an_indirect_table() {
    let (_backend, mut front) = connect();
    prepare(&front, RequestHeader::new(Operation::Nop, 0, 0, 0));
    let guest = front.guest.clone();
    let ring = &mut front.rings[0];
    let table = ring.tables;
    let rest = [Buffer::readable(HEADERS + 8, 24), RESPONSE];
    ring.write_chain(&guest, table, 0, &rest);
    let begin = (Buffer::readable(HEADERS, 8), descriptor_flags::NEXT, 1);
    ring.write_descriptor(&guest, ring.descriptors, 0, begin);
    let flags = descriptor_flags::INDIRECT | descriptor_flags::WRITE;
    let indirect = (Buffer::readable(table, 32), flags, 0);
    ring.write_descriptor(&guest, ring.descriptors, 1, indirect);
    ring.make_available(&guest, 0);
    assert_eq!(finish(&mut front), (Status::OK, 16));
}

#[test]
fn device_memory_begins_as_zeroes_and_survives_resets() {
    let (_backend, mut front) = connect();
    let whole = Request::new(Operation::Compare, 0, MIB, 0).outgoing(DATA, MIB as u32);
    let (response, _) = front.call(0, &whole);
    assert_eq!(response, Response::new(Status::OK, MIB as u32, MIB));
    let fill = Request::new(Operation::Fill, 100, 8, u64::MAX);
    assert_eq!(front.call(0, &fill).0.status(), Status::OK);
    front.reset();
    front.start();
    front.guest.write(DATA + 100, &[0xff; 8]);
    assert_eq!(front.call(0, &whole).0.value.get(), MIB);
}
