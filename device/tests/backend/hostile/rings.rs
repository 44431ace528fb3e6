//! Corrupt rings.

use vhost::VhostBackend;

use super::{MIB, assert_works, two_queues};
use crate::support::{
    Backend, Buffer, DEADLINE, DriverRing, FrontEnd, Guest, HEADERS, await_event,
    descriptor_flags::{INDIRECT, NEXT},
};

/// A descriptor's contents: memory, flags, next.
type Descriptor = (Buffer, u16, u16);

/// Applies `corrupt` to queue 0 and expects it to stop with an error notification and one log line,
/// queue 1 to keep working, and queue 0 to work again after a reset.
fn assert_stops(reason: &str, corrupt: impl FnOnce(&Guest, &mut DriverRing)) {
    let (backend, mut front) = two_queues();
    assert_works(&mut front, 0);
    let served = front.rings[0].next_used;
    let guest = front.guest.clone();
    corrupt(&guest, &mut front.rings[0]);
    front.kick(0);
    assert!(
        await_event(&front.rings[0].error, DEADLINE),
        "no error notification"
    );
    assert_eq!(front.rings[0].used_index(&front.guest), served);
    assert_works(&mut front, 1);
    front.reset();
    front.start();
    assert_works(&mut front, 0);
    drop(front);
    let log = backend.end();
    assert_eq!(log.matches("corrupt ring").count(), 1, "{log}");
    assert!(log.contains(reason), "{log}");
}

/// The same with a chain that begins with these descriptors of the ring's own table.
fn assert_chain_stops(reason: &str, descriptors: &[Descriptor]) {
    assert_stops(reason, |guest, ring| {
        for (index, descriptor) in (0..).zip(descriptors) {
            ring.write_descriptor(guest, ring.descriptors, index, *descriptor);
        }
        ring.make_available(guest, 0);
    });
}

/// The same with an indirect table of `length` bytes that begins with `entry`.
fn assert_table_stops(reason: &str, length: u32, flags: u16, entry: impl Fn(Buffer) -> Descriptor) {
    assert_stops(reason, |guest, ring| {
        let table = Buffer::readable(ring.tables, length);
        ring.write_descriptor(guest, ring.tables, 0, entry(table));
        ring.write_descriptor(guest, ring.descriptors, 0, (table, flags, 1));
        ring.make_available(guest, 0);
    });
}

fn header() -> Buffer {
    Buffer::readable(HEADERS, 32)
}

#[test]
fn available_index_beyond_the_queue() {
    assert_stops("the ring has 256 entries", |guest, ring| {
        let index = ring.next_available.wrapping_add(ring.size + 1);
        guest.write(ring.available + 2, &index.to_le_bytes());
    });
}

#[test]
fn head_beyond_the_table() {
    assert_stops("descriptor 256 is beyond", |guest, ring| {
        ring.make_available(guest, 256);
    });
}

#[test]
fn next_beyond_the_table() {
    assert_chain_stops("descriptor 60000 is beyond", &[(header(), NEXT, 60_000)]);
}

#[test]
fn next_beyond_the_indirect_table() {
    assert_table_stops("descriptor 4 is beyond", 64, INDIRECT, |_| {
        (header(), NEXT, 4)
    });
}

#[test]
fn circular_chain() {
    assert_chain_stops("circular", &[(header(), NEXT, 1), (header(), NEXT, 0)]);
}

#[test]
fn circular_indirect_chain() {
    assert_table_stops("circular", 64, INDIRECT, |_| (header(), NEXT, 0));
}

#[test]
fn indirect_inside_indirect() {
    let reason = "an indirect table where none is allowed";
    assert_table_stops(reason, 16, INDIRECT, |table| (table, INDIRECT, 0));
}

#[test]
fn indirect_with_next() {
    let reason = "an indirect table where none is allowed";
    assert_table_stops(reason, 16, INDIRECT | NEXT, |_| (header(), 0, 0));
}

#[test]
fn indirect_table_of_odd_length() {
    for length in [0, 8, 24, u32::MAX] {
        let reason = "not a whole number of descriptors";
        assert_table_stops(reason, length, INDIRECT, |_| (header(), 0, 0));
    }
}

#[test]
fn indirect_table_outside_of_memory() {
    // The last one crosses the end of a region.
    for address in [1 << 40, u64::MAX - 15, 32 * MIB - 32] {
        let table = Buffer::readable(address, 64);
        assert_chain_stops("indirect table at", &[(table, INDIRECT, 0)]);
    }
}

#[test]
fn rings_outside_of_memory_or_misaligned() {
    let (backend, mut front) = two_queues();
    assert_works(&mut front, 1);
    // Begins in guest memory and ends beyond it.
    front.stop_ring(0);
    let end = 32 * MIB;
    front.rings[0].descriptors = end - 16;
    front.start_ring(0);
    assert!(await_event(&front.rings[0].error, DEADLINE));
    assert_works(&mut front, 1);
    // Across two regions, which are not adjacent in the backend.
    front.stop_ring(0);
    front.rings[0].descriptors = 16 * MIB - 16;
    front.start_ring(0);
    assert!(await_event(&front.rings[0].error, DEADLINE));
    assert_works(&mut front, 1);
    drop(front);
    let log = backend.end();
    assert!(
        log.contains("descriptor table at 0x1fffff0 is misaligned or outside"),
        "{log}"
    );
}

#[test]
fn invalid_queue_sizes() {
    let backend = Backend::start(&["--memory-size", "1M", "--queue-size", "256"]);
    // The vhost-user-backend crate rejects these itself, or leaves the queue as it is.
    for size in [0, 3, 100, 255, 257, 512, 65_535] {
        let mut front = FrontEnd::connect(&backend.socket());
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
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
}

#[test]
fn a_guest_cannot_flood_the_log() {
    let (backend, mut front) = two_queues();
    for _ in 0..100 {
        let guest = front.guest.clone();
        front.rings[0].make_available(&guest, 9999);
        front.kick(0);
        assert!(await_event(&front.rings[0].error, DEADLINE));
        front.reset();
        front.start();
    }
    drop(front);
    let log = backend.end();
    assert!(log.matches("corrupt ring").count() <= 20, "{log}");
}
