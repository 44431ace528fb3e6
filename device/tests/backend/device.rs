//! The backend over its socket: data, framing, rings, and successive front ends.

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use crate::support::{
    Backend, Buffer, Connect, DATA, FEATURES, FrontEnd, HEADERS, RESPONSES, Request,
};

fn pattern(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u32::from(seed) * 0x9e37 + 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

#[test]
fn written_data_reads_back() {
    let backend = Backend::start(&["--memory-size", "4M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    let data = pattern(1, 100_001);
    front.guest.write(DATA + 3, &data);
    let write = Request::new(Operation::Write, 4097, 100_001, 0).outgoing(DATA + 3, 100_001);
    let (response, written) = front.call(0, &write);
    assert_eq!(
        (response.status(), response.transferred.get(), written),
        (Status::OK, 100_001, 16)
    );
    let target = DATA + 0x10_0000;
    let read = Request::new(Operation::Read, 4097, 100_001, 0)
        .incoming(target + 1, 1)
        .incoming(target + 2, 60_000)
        .incoming(target + 60_002, 40_000);
    let (response, written) = front.call(0, &read);
    assert_eq!((response.status(), written), (Status::OK, 16 + 100_001));
    assert_eq!(front.guest.bytes(target + 1, 100_001), data);
    assert_eq!(front.guest.bytes(target, 1), [0]);
    assert_eq!(front.guest.bytes(target + 100_002, 8), [0; 8]);
}

#[test]
fn framing_does_not_matter() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    let guest = front.guest.clone();
    let data = pattern(2, 600);
    // Header and data in one descriptor.
    let header = RequestHeader::new(Operation::Write, 10, 600, 0).to_bytes();
    guest.write(HEADERS, &header);
    guest.write(HEADERS + 32, &data);
    let chain = [
        Buffer::readable(HEADERS, 632),
        Buffer::writable(RESPONSES, 16),
    ];
    front.rings[0].submit_direct(&guest, &chain, 5);
    front.kick(0);
    assert_eq!(
        (front.wait(0).id, front.response(0).status()),
        (5, Status::OK)
    );
    // Header and response in odd pieces with empty descriptors in between; response and data in
    // one.
    let header = RequestHeader::new(Operation::Read, 10, 600, 0).to_bytes();
    guest.write(HEADERS, &header);
    guest.write(RESPONSES, &[0xff; 16]);
    let chain = [
        Buffer::readable(HEADERS, 0),
        Buffer::readable(HEADERS, 1),
        Buffer::readable(HEADERS + 1, 30),
        Buffer::readable(HEADERS + 31, 1),
        Buffer::writable(RESPONSES, 3),
        Buffer::writable(RESPONSES + 3, 0),
        Buffer::writable(RESPONSES + 3, 13 + 100),
        Buffer::writable(DATA, 500),
    ];
    front.rings[0].submit_direct(&guest, &chain, 0);
    front.kick(0);
    let used = front.wait(0);
    assert_eq!((used.id, used.written), (0, 616));
    assert_eq!(front.response(0), Response::new(Status::OK, 600, 0));
    let mut back = guest.bytes(RESPONSES + 16, 100);
    back.extend(guest.bytes(DATA, 500));
    assert_eq!(back, data);
}

#[test]
fn rings_work_without_event_idx() {
    let backend = Backend::start(&[]);
    let options = Connect {
        features: FEATURES & !(1 << 29),
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    for _ in 0..1000 {
        let (response, _) = front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
        assert_eq!(response.status(), Status::OK);
    }
}

#[test]
fn many_requests_on_many_queues() {
    let backend = Backend::start(&["--num-queues", "4", "--queue-size", "64"]);
    let options = Connect {
        num_queues: 4,
        queue_size: 64,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    for _ in 0..200 {
        for queue in 0..4 {
            for slot in 0..64 {
                front.submit(queue, &Request::new(Operation::Nop, 0, 0, 0), slot);
            }
            front.kick(queue);
        }
        for queue in 0..4 {
            let mut seen: Vec<u32> = (0..64).map(|_| front.wait(queue).id).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..64).collect::<Vec<u32>>());
        }
    }
}

#[test]
fn device_memory_outlives_a_front_end() {
    let mut backend = Backend::start(&["--memory-size", "1M"]);
    for round in 0u8..3 {
        let mut front = FrontEnd::connect(&backend.socket());
        front.guest.write(DATA, &[round + 1; 8]);
        let read = Request::new(Operation::Read, 0, 1, 0).incoming(DATA + 64, 1);
        assert_eq!(front.call(0, &read).0.status(), Status::OK);
        // Device memory outlives the front end.
        assert_eq!(front.guest.bytes(DATA + 64, 1), [round]);
        let write = Request::new(Operation::Write, 0, 8, 0).outgoing(DATA, 8);
        assert_eq!(front.call(0, &write).0.status(), Status::OK);
    }
    assert!(backend.is_running());
}

#[test]
fn once_exits_after_the_first_front_end() {
    let backend = Backend::start(&["--once"]);
    let socket = backend.socket();
    let front = FrontEnd::connect(&socket);
    drop(front);
    let (status, log) = backend.wait();
    assert!(status.success(), "{log}");
    assert!(!socket.exists());
}

#[test]
fn stopping_a_ring_under_load_loses_and_repeats_nothing() {
    let backend = Backend::start(&["--memory-size", "1M", "--num-queues", "2"]);
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    for round in 0..60u64 {
        let mut completed = [0u32; 200];
        for slot in 0..200u16 {
            let at = DATA + 8 * u64::from(slot);
            front
                .guest
                .write(at, &(round * 1000 + u64::from(slot)).to_le_bytes());
            let write = Request::new(Operation::Write, 8 * u64::from(slot), 8, 0).outgoing(at, 8);
            front.submit(0, &write, slot);
        }
        front.kick(0);
        for _ in 0..round % 7 {
            std::thread::yield_now();
        }
        // The other queue keeps working.
        let (response, _) = front.call(1, &Request::new(Operation::Nop, 0, 0, 0));
        assert_eq!(response.status(), Status::OK);
        let next = front.stop_ring(0);
        let guest = front.guest.clone();
        while let Some(used) = front.rings[0].pop_used(&guest) {
            completed[used.id as usize] += 1;
        }
        // What was taken is completed, and what was not is still there.
        assert_eq!(next, u32::from(front.rings[0].next_used));
        front.start_ring(0);
        while completed.contains(&0) {
            completed[front.wait(0).id as usize] += 1;
        }
        assert!(completed.iter().all(|&count| count == 1), "{completed:?}");
        let read = Request::new(Operation::Read, 0, 1600, 0).incoming(DATA + 0x1000, 1600);
        assert_eq!(front.call(1, &read).0.status(), Status::OK);
        let back = front.guest.bytes(DATA + 0x1000, 1600);
        assert!(back == front.guest.bytes(DATA, 1600));
    }
}

/// The largest number of queues, and the largest ring.
#[test]
fn sixteen_queues_and_rings_of_1024() {
    for (num_queues, queue_size) in [(16, 256), (1, 1024)] {
        let backend = Backend::start(&[
            &format!("--num-queues={num_queues}"),
            &format!("--queue-size={queue_size}"),
        ]);
        let options = Connect {
            num_queues,
            queue_size,
            ..Connect::default()
        };
        let mut front = FrontEnd::connect_with(&backend.socket(), &options);
        for _ in 0..5 {
            for queue in 0..num_queues {
                for slot in 0..queue_size {
                    front.submit(queue, &Request::new(Operation::Nop, 0, 0, 0), slot);
                }
                front.kick(queue);
            }
            for queue in 0..num_queues {
                let mut seen: Vec<u32> = (0..queue_size).map(|_| front.wait(queue).id).collect();
                seen.sort_unstable();
                assert_eq!(seen, (0..u32::from(queue_size)).collect::<Vec<u32>>());
            }
        }
    }
}

#[test]
fn large_memory_can_be_sparse() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory");
    let file = format!("--memory-file={}", path.display());
    let backend = Backend::start_in(directory, &["--memory-size=64G", "--sparse", &file]);
    let mut front = FrontEnd::connect(&backend.socket());
    let end = (64 << 30) - 8;
    front.guest.write(DATA, b"the end.");
    let write = Request::new(Operation::Write, end, 8, 0).outgoing(DATA, 8);
    assert_eq!(front.call(0, &write).0.status(), Status::OK);
    let read = Request::new(Operation::Read, end, 8, 0).incoming(DATA + 8, 8);
    assert_eq!(front.call(0, &read).0.status(), Status::OK);
    assert_eq!(front.guest.bytes(DATA + 8, 8), b"the end.");
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 64 << 30);
    assert!(metadata.blocks() * 512 <= 1 << 20, "{}", metadata.blocks());
}

/// The next front end may belong to another guest.
#[test]
fn scrubbed_memory_begins_as_zeroes_for_each_front_end() {
    let backend = Backend::start(&["--memory-size", "1M", "--scrub"]);
    for _ in 0..2 {
        let mut front = FrontEnd::connect(&backend.socket());
        let read = Request::new(Operation::Read, 4000, 9000, 0).incoming(DATA, 9000);
        assert_eq!(front.call(0, &read).0.status(), Status::OK);
        assert!(front.guest.bytes(DATA, 9000).iter().all(|&byte| byte == 0));
        let fill = Request::new(Operation::Fill, 0, 1 << 20, u64::MAX);
        assert_eq!(front.call(0, &fill).0.status(), Status::OK);
    }
}
