//! Queues that share threads (`--threads`).

use vdma_protocol::{Operation, Status};

use crate::support::{Backend, Connect, DATA, FrontEnd, Request, curl};

fn connect(backend: &Backend, num_queues: usize) -> FrontEnd {
    let options = Connect {
        num_queues,
        ..Connect::default()
    };
    FrontEnd::connect_with(&backend.socket(), &options)
}

fn nop() -> Request {
    Request::new(Operation::Nop, 0, 0, 0)
}

/// Names of the backend's threads that run queues.
fn queue_threads(backend: &Backend) -> Vec<String> {
    let mut names = backend.thread_names();
    names.retain(|name| name.starts_with("queue"));
    names.sort_unstable();
    names
}

#[test]
fn eight_queues_on_two_threads_are_all_served() {
    let backend = Backend::start(&["--num-queues=8", "--threads=2", "--memory-size=1M"]);
    let mut front = connect(&backend, 8);
    for round in 0..20u64 {
        for queue in 0..8 {
            for slot in 0..100 {
                let at = 4096 * queue as u64 + 8 * u64::from(slot);
                front.guest.write(DATA + at, &(at + round).to_le_bytes());
                let write = Request::new(Operation::Write, at, 8, 0).outgoing(DATA + at, 8);
                front.submit(queue, &write, slot);
            }
            front.kick(queue);
        }
        for queue in 0..8 {
            let mut seen: Vec<u32> = (0..100).map(|_| front.wait(queue).id).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..100).collect::<Vec<u32>>(), "queue {queue}");
            let read = Request::new(Operation::Read, 4096 * queue as u64, 800, 0)
                .incoming(DATA + 0x10_0000, 800);
            assert_eq!(front.call(queue, &read).0.status(), Status::OK);
            let sent = front.guest.bytes(DATA + 4096 * queue as u64, 800);
            assert!(front.guest.bytes(DATA + 0x10_0000, 800) == sent);
        }
    }
    assert_eq!(
        queue_threads(&backend),
        ["queues 0 mod 2", "queues 1 mod 2"]
    );
}

#[test]
fn thread_counts_that_do_not_divide_the_queues() {
    let backend = Backend::start(&["--num-queues=4", "--threads=3", "--memory-size=1M"]);
    let mut front = connect(&backend, 4);
    for queue in 0..4 {
        assert_eq!(front.call(queue, &nop()).0.status(), Status::OK);
    }
    let names = queue_threads(&backend);
    assert_eq!(names, ["queue 1", "queue 2", "queues 0 mod 3"]);
}

#[test]
fn each_queue_has_its_own_thread_by_default() {
    let backend = Backend::start(&["--num-queues=3", "--memory-size=1M"]);
    let mut front = connect(&backend, 3);
    assert_eq!(front.call(2, &nop()).0.status(), Status::OK);
    assert_eq!(queue_threads(&backend), ["queue 0", "queue 1", "queue 2"]);
}

/// A queue that always has requests gets its turn, not the whole thread.
#[test]
fn a_busy_queue_does_not_starve_its_neighbour() {
    let backend = Backend::start(&["--num-queues=2", "--threads=1", "--memory-size=8M"]);
    let mut front = connect(&backend, 2);
    assert_eq!(front.call(1, &nop()).0.status(), Status::OK);
    let checksum = Request::new(Operation::Crc32c, 0, 8 << 20, 0);
    for slot in 0..100 {
        front.submit(0, &checksum, slot);
    }
    front.kick(0);
    for _ in 0..3 {
        assert_eq!(front.call(1, &nop()).0.status(), Status::OK);
        let served = front.rings[0].used_index(&front.guest);
        assert!(served < 100, "{served}");
    }
    for _ in 0..100 {
        front.wait(0);
    }
}

#[test]
fn a_delayed_request_blocks_only_its_own_queue() {
    let backend = Backend::start(&[
        "--num-queues=2",
        "--threads=1",
        "--fault=delay=3600s,queue=0",
    ]);
    let mut front = connect(&backend, 2);
    front.submit(0, &nop(), 0);
    front.kick(0);
    for _ in 0..100 {
        assert_eq!(front.call(1, &nop()).0.status(), Status::OK);
    }
    assert_eq!(front.rings[0].used_index(&front.guest), 0);
    // While one queue is held, another can be stopped and started.
    assert_eq!(front.stop_ring(0), 0);
    front.stop_ring(1);
    front.start_ring(1);
    assert_eq!(front.call(1, &nop()).0.status(), Status::OK);
}

#[test]
fn a_corrupt_ring_does_not_stop_others_on_its_thread() {
    let backend = Backend::start(&["--num-queues=2", "--threads=1", "--memory-size=1M"]);
    let mut front = connect(&backend, 2);
    let guest = front.guest.clone();
    front.rings[0].make_available(&guest, 9999);
    front.kick(0);
    assert!(crate::support::await_event(
        &front.rings[0].error,
        crate::support::DEADLINE
    ));
    assert_eq!(front.call(1, &nop()).0.status(), Status::OK);
    front.reset();
    front.start();
    for queue in 0..2 {
        assert_eq!(front.call(queue, &nop()).0.status(), Status::OK);
    }
}

#[test]
fn shared_threads_poll_for_requests() {
    let arguments = ["--num-queues=2", "--threads=1", "--poll-us=1000000"];
    let (backend, metrics) = Backend::start_with_metrics(&arguments);
    let mut front = connect(&backend, 2);
    for _ in 0..50 {
        for queue in 0..2 {
            assert_eq!(front.call(queue, &nop()).0.status(), Status::OK);
        }
    }
    let text = curl(&metrics);
    for queue in 0..2 {
        let hits = format!("vdma_poll_hits_total{{device=\"0\",queue=\"{queue}\"}}");
        let hits = text
            .lines()
            .find_map(|line| line.strip_prefix(&hits))
            .unwrap();
        assert_ne!(hits.trim(), "0", "{text}");
    }
}
