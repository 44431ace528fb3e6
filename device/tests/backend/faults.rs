//! Every kind of `--fault`, as a driver sees it.

use std::time::{Duration, Instant};

use vdma_protocol::{Operation, Status};

use crate::support::{Backend, DATA, DEADLINE, FrontEnd, Request, Used, await_event, curl};

fn start(faults: &[&str]) -> (Backend, FrontEnd) {
    let mut arguments = vec!["--memory-size", "1M"];
    for fault in faults {
        arguments.extend(["--fault", fault]);
    }
    let backend = Backend::start(&arguments);
    let front = FrontEnd::connect(&backend.socket());
    (backend, front)
}

fn nop() -> Request {
    Request::new(Operation::Nop, 0, 0, 0)
}

fn write(offset: u64, length: u32) -> Request {
    Request::new(Operation::Write, offset, length.into(), 0).outgoing(DATA, length)
}

fn read(offset: u64, length: u32) -> Request {
    Request::new(Operation::Read, offset, length.into(), 0).incoming(DATA + 0x1_0000, length)
}

#[test]
fn delay_holds_the_request_but_not_the_socket() {
    let (_backend, mut front) = start(&["delay=200ms,every=2"]);
    front.call(0, &nop());
    let begin = Instant::now();
    front.submit(0, &nop(), 0);
    front.submit(0, &nop(), 1);
    front.kick(0);
    // The ring can be stopped while the request is held, which then stays available.
    assert_eq!(front.stop_ring(0), 1);
    front.start_ring(0);
    assert_eq!((front.wait(0).id, front.wait(0).id), (0, 1));
    assert!(begin.elapsed() >= Duration::from_millis(200));
}

#[test]
fn fail_responds_without_executing() {
    let (_backend, mut front) = start(&["fail=bad-range,op=write,after=1", "fail=4242,op=flush"]);
    front.guest.write(DATA, &[7; 16]);
    assert_eq!(front.call(0, &write(0, 16)).0.status(), Status::OK);
    front.guest.write(DATA, &[8; 16]);
    let (response, _) = front.call(0, &write(0, 16));
    assert_eq!(
        (response.status(), response.transferred.get()),
        (Status::BAD_RANGE, 0)
    );
    assert_eq!(front.call(0, &read(0, 16)).0.status(), Status::OK);
    assert_eq!(front.guest.bytes(DATA + 0x1_0000, 16), [7; 16]);
    let flush = Request::new(Operation::Flush, 0, 0, 0);
    assert_eq!(front.call(0, &flush).0.status(), Status(4242));
}

#[test]
fn short_transfers_only_the_first_bytes() {
    let (_backend, mut front) = start(&["short,op=write", "short=3,op=read"]);
    front.guest.write(DATA, &[7; 16]);
    let (response, written) = front.call(0, &write(0, 16));
    assert_eq!(
        (response.status(), response.transferred.get(), written),
        (Status::OK, 8, 16)
    );
    let (response, written) = front.call(0, &read(6, 6));
    assert_eq!((response.transferred.get(), written), (3, 19));
    assert_eq!(front.guest.bytes(DATA + 0x1_0000, 6), [7, 7, 0, 0, 0, 0]);
}

#[test]
fn flip_inverts_bits_reproducibly() {
    let run = || {
        let (_backend, mut front) = start(&["flip=3,op=read,seed=5", "flip,op=crc32c"]);
        assert_eq!(front.call(0, &read(0, 4096)).0.status(), Status::OK);
        let crc = Request::new(Operation::Crc32c, 0, 0, 0);
        let value = front.call(0, &crc).0.value.get();
        (front.guest.bytes(DATA + 0x1_0000, 4096), value)
    };
    let (data, value) = run();
    assert_eq!(data.iter().map(|byte| byte.count_ones()).sum::<u32>(), 3);
    assert_eq!(value.count_ones(), 1);
    assert_eq!(run(), (data, value));
    // A write is corrupted in device memory.
    let (_backend, mut front) = start(&["flip,op=write"]);
    front.call(0, &write(0, 64));
    front.call(0, &read(0, 64));
    let data = front.guest.bytes(DATA + 0x1_0000, 64);
    assert_eq!(data.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
}

#[test]
fn drop_executes_and_never_completes() {
    let (_backend, mut front) = start(&["drop,op=write"]);
    front.guest.write(DATA, &[9; 8]);
    front.submit(0, &write(0, 8), 0);
    front.submit(0, &read(0, 8), 1);
    front.kick(0);
    assert_eq!(front.wait(0), Used { id: 1, written: 24 });
    assert_eq!(front.guest.bytes(DATA + 0x1_0000, 8), [9; 8]);
    front.submit(0, &nop(), 2);
    front.kick(0);
    assert_eq!(front.wait(0).id, 2);
}

#[test]
fn twice_completes_twice() {
    let (_backend, mut front) = start(&["twice,every=2"]);
    let ids: Vec<u32> = {
        for slot in 0..2 {
            front.submit(0, &nop(), slot);
        }
        front.kick(0);
        (0..3).map(|_| front.wait(0).id).collect()
    };
    assert_eq!(ids, [0, 1, 1]);
}

#[test]
fn wrong_id_and_wrong_length() {
    let (_backend, mut front) = start(&[
        "wrong-id,op=nop",
        "wrong-id=70000,op=flush",
        "wrong-length,op=read",
        "wrong-length=4294967295,op=write",
    ]);
    let mut used = |request: &Request| {
        front.submit(0, request, 4);
        front.kick(0);
        front.wait(0)
    };
    assert_eq!(used(&nop()), Used { id: 5, written: 16 });
    let flush = Request::new(Operation::Flush, 0, 0, 0);
    assert_eq!(
        used(&flush),
        Used {
            id: 70_000,
            written: 16
        }
    );
    assert_eq!(used(&read(0, 8)), Used { id: 4, written: 25 });
    assert_eq!(
        used(&write(0, 8)),
        Used {
            id: 4,
            written: u32::MAX
        }
    );
}

#[test]
fn swap_reorders_neighbours_in_a_batch() {
    let (_backend, mut front) = start(&["swap,every=3"]);
    // Submitted while the ring is stopped, so that all are in one batch.
    front.stop_ring(0);
    for slot in 0..6 {
        front.submit(0, &nop(), slot);
    }
    front.start_ring(0);
    front.kick(0);
    let ids: Vec<u32> = (0..6).map(|_| front.wait(0).id).collect();
    // The third is swapped with the fourth; the sixth has no successor.
    assert_eq!(ids, [0, 1, 3, 2, 4, 5]);
}

#[test]
fn stop_queue_behaves_as_a_corrupt_ring() {
    let (backend, mut front) = start(&["stop-queue,after=2"]);
    front.call(0, &nop());
    front.call(0, &nop());
    front.submit(0, &nop(), 0);
    front.kick(0);
    assert!(await_event(&front.rings[0].error, DEADLINE));
    front.stop_ring(0);
    drop(front);
    assert!(backend.end().contains("--fault stop-queue"));
}

#[test]
fn vanish_kills_the_backend() {
    let (backend, mut front) = start(&["vanish,op=flush"]);
    front.call(0, &nop());
    front.submit(0, &Request::new(Operation::Flush, 0, 0, 0), 0);
    front.kick(0);
    let (status, _) = backend.wait();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
}

#[test]
fn queue_and_range_selectors_and_fault_metrics() {
    let fault = "--fault=fail,range=4K+4K,queue=1";
    let arguments = ["--num-queues=2", "--memory-size=1M", fault];
    let (backend, metrics) = Backend::start_with_metrics(&arguments);
    let options = crate::support::Connect {
        num_queues: 2,
        ..Default::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    for (queue, offset, status) in [
        (0, 4096, Status::OK),
        (1, 4095 - 8, Status::OK),
        (1, 4090, Status::IO_ERROR),
        (1, 8191, Status::IO_ERROR),
        (1, 8192, Status::OK),
    ] {
        assert_eq!(front.call(queue, &write(offset, 8)).0.status(), status);
    }
    let text = curl(&metrics);
    let expected = "vdma_faults_total{device=\"0\",queue=\"1\",kind=\"fail\"} 2\n";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn invalid_faults_are_usage_errors() {
    for fault in ["explode", "delay", "drop,op=eat", "fail,every=0"] {
        let mut command = Backend::command();
        command.args(["--socket-path", "/nonexistent/x", "--fault", fault]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("--fault"), "{text}");
    }
}
