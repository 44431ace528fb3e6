//! Metrics, the summary, the log, signals, and an idle backend.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use vdma_protocol::Operation;

use crate::support::{Backend, Connect, DATA, DEADLINE, FrontEnd, Request, curl};

fn value(text: &str, line: &str) -> f64 {
    text.lines()
        .find_map(|candidate| candidate.strip_prefix(line)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("no {line} in\n{text}"))
}

#[test]
fn metrics_count_requests_kicks_and_calls() {
    // Polling finds requests without a kick.
    let (backend, metrics) = Backend::start_with_metrics(&["--memory-size=1M", "--poll-us=0"]);
    let mut front = FrontEnd::connect(&backend.socket());
    for slot in 0..40 {
        let write = Request::new(Operation::Write, 0, 100, 0).outgoing(DATA, 100);
        front.submit(0, &write, slot);
    }
    front.kick(0);
    for _ in 0..40 {
        front.wait(0);
    }
    front.call(
        0,
        &Request::new(Operation::Read, 1 << 20, 1, 0).incoming(DATA, 1),
    );
    let queue = "device=\"0\",queue=\"0\"";
    // Polling may find a request before its kick, which is then consumed when the queue goes to
    // sleep.
    let begin = Instant::now();
    let text = loop {
        let text = curl(&metrics);
        if value(&text, &format!("vdma_kicks_total{{{queue}}}")) >= 1.0 {
            break text;
        }
        assert!(begin.elapsed() < DEADLINE, "{text}");
        std::thread::yield_now();
    };
    let write = format!("{{{queue},operation=\"write\"}}");
    assert_eq!(value(&text, &format!("vdma_requests_total{write}")), 40.0);
    assert_eq!(value(&text, &format!("vdma_bytes_total{write}")), 4000.0);
    assert_eq!(value(&text, &format!("vdma_errors_total{write}")), 0.0);
    assert_eq!(
        value(&text, &format!("vdma_request_seconds_count{write}")),
        40.0
    );
    let read = format!("{{{queue},operation=\"read\"}}");
    assert_eq!(value(&text, &format!("vdma_errors_total{read}")), 1.0);
    let kicks = value(&text, &format!("vdma_kicks_total{{{queue}}}"));
    assert!(kicks <= 2.0, "{kicks}");
    // Forty requests do not fit into one batch, and each batch calls at most once.
    let batches = value(&text, &format!("vdma_batch_requests_count{{{queue}}}"));
    let calls = value(&text, &format!("vdma_calls_total{{{queue}}}"));
    assert!(batches >= 3.0 && calls <= batches, "{batches} {calls}");
    assert_eq!(value(&text, "vdma_front_ends_total{device=\"0\"}"), 1.0);
    for line in text.lines() {
        assert!(line.starts_with('#') || line.starts_with("vdma_"), "{line}");
    }
}

#[test]
fn a_silent_metrics_client_blocks_no_other() {
    let (backend, metrics) = Backend::start_with_metrics(&[]);
    let mut silent: Vec<UnixStream> = (0..40)
        .map(|_| UnixStream::connect(&metrics).unwrap())
        .collect();
    assert!(curl(&metrics).contains("vdma_front_ends_total"));
    // The oldest was closed.
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
    backend.end();
    assert!(!metrics.exists());
}

/// A slow client is waited for; one that hangs up is forgotten.
#[test]
fn metrics_requests_may_arrive_in_pieces() {
    let (_backend, metrics) = Backend::start_with_metrics(&["--num-queues=16"]);
    for pieces in [
        &["GET /met", "rics HTTP/1.1\r\n", "Host: x\r\n", "\r\n"][..],
        &["GET /\n", "\n"],
        &["GET anything at all"],
    ] {
        let mut stream = UnixStream::connect(&metrics).unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
            // Other clients are served meanwhile.
            assert!(curl(&metrics).contains("vdma_front_ends_total"));
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200 OK"), "{text}");
    }
    let long = format!("GET {}", "x".repeat(10_000));
    let mut stream = UnixStream::connect(&metrics).unwrap();
    let _ = stream.write_all(long.as_bytes());
    let mut start = [0; 15];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.0 200 OK");
    drop(UnixStream::connect(&metrics).unwrap());
    assert!(curl(&metrics).contains("vdma_front_ends_total"));
}

#[test]
fn sigusr1_prints_a_summary() {
    let backend = Backend::start(&["--log-level", "off"]);
    let mut front = FrontEnd::connect(&backend.socket());
    for _ in 0..7 {
        front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    }
    backend.signal(Signal::USR1);
    backend.signal(Signal::HUP);
    front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    let log = backend.end();
    assert!(log.contains("device 0: 1 front-end connections"), "{log}");
    assert!(log.contains("nop"), "{log}");
}

/// A backend that waited for the load to end would not exit before the deadline.
#[test]
fn sigterm_under_load_exits_promptly_with_memory_flushed() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory");
        let kept = directory.path().join("kept");
        let arguments = ["--num-queues=2", "--memory-size=64M", "--memory-file"];
        let mut arguments: Vec<&str> = arguments.to_vec();
        arguments.push(file.to_str().unwrap());
        let backend = Backend::start_in(directory, &arguments);
        let options = Connect {
            num_queues: 2,
            ..Connect::default()
        };
        let mut front = FrontEnd::connect_with(&backend.socket(), &options);
        front.guest.write(DATA, b"still here");
        front.call(
            0,
            &Request::new(Operation::Write, 0, 10, 0).outgoing(DATA, 10),
        );
        std::fs::hard_link(&file, &kept).unwrap();
        for slot in 0..200 {
            let fill = Request::new(Operation::Fill, 4096, 32 << 20, 0x55);
            front.submit(usize::from(slot % 2), &fill, slot);
        }
        front.kick(0);
        front.kick(1);
        let begin = Instant::now();
        backend.signal(signal);
        let mut bytes = [0; 10];
        std::fs::File::open(&kept)
            .unwrap()
            .read_exact(&mut bytes)
            .unwrap();
        let (status, log) = backend.wait();
        eprintln!("{signal:?}: ended after {:?}", begin.elapsed());
        assert!(status.success(), "{log}");
        assert_eq!(&bytes, b"still here");
    }
}

#[test]
fn sigterm_does_not_wait_for_the_largest_requests() {
    let directory = tempfile::tempdir().unwrap();
    let backend = Backend::start_in(directory, &["--memory-size=1G"]);
    let mut front = FrontEnd::connect(&backend.socket());
    let checksum = Request::new(Operation::Crc32c, 0, 1 << 30, 0);
    for slot in 0..100 {
        front.submit(0, &checksum, slot);
    }
    front.kick(0);
    backend.signal(Signal::TERM);
    let socket = backend.socket();
    let (status, log) = backend.wait();
    assert!(status.success(), "{log}");
    assert!(!socket.exists());
}

#[test]
fn log_levels_filter_lines_by_module() {
    for (level, wanted) in [
        ("debug", [true, true]),
        ("info", [true, false]),
        ("warn", [false, false]),
        ("warn,vhost_device_dma::vhost_user=debug", [false, true]),
    ] {
        let backend = Backend::start(&["--log-level", level]);
        let mut front = FrontEnd::connect(&backend.socket());
        front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
        let log = backend.end();
        let found = ["SIGTERM: exiting", "device 0: features"].map(|line| log.contains(line));
        assert_eq!(found, wanted, "{level}: {log}");
    }
}

#[test]
fn debug_lines_name_device_queue_and_head() {
    let backend = Backend::start(&["--log-level=debug", "--num-queues=2"]);
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    front.submit(1, &Request::new(Operation::Fill, 0, 100, 0), 17);
    front.kick(1);
    front.wait(1);
    let log = backend.end();
    let line = "device 0 queue 1: head 17: fill: ";
    assert!(log.contains(line), "{log}");
}

/// The kernel counts each wake-up of a thread: there must be none, not even by a timer.
#[test]
fn an_idle_backend_does_not_wake() {
    let backend = Backend::start(&["--num-queues=4", "--threads=3", "--memory-size=1M"]);
    let options = Connect {
        num_queues: 4,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    for queue in 0..4 {
        front.call(queue, &Request::new(Operation::Nop, 0, 0, 0));
    }
    let switches = || {
        let tasks = format!("/proc/{}/task", backend.pid().as_raw_nonzero());
        let mut counts = std::collections::BTreeMap::new();
        for task in std::fs::read_dir(tasks).unwrap() {
            let path = task.unwrap().path();
            let status = std::fs::read_to_string(path.join("status")).unwrap();
            let count = status
                .lines()
                .find(|line| line.starts_with("voluntary"))
                .map(str::to_owned);
            counts.insert(path, count);
        }
        counts
    };
    // The last request may still be finishing: two samples in a row have to agree.
    let begin = Instant::now();
    let mut before = switches();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let after = switches();
        if before == after {
            break;
        }
        assert!(begin.elapsed() < DEADLINE, "{after:?}");
        before = after;
    }
}

#[test]
fn metrics_answer_only_get_and_head() {
    let (_backend, metrics) = Backend::start_with_metrics(&["--memory-size", "1M"]);
    let answer = |request: &[u8]| {
        let mut stream = UnixStream::connect(&metrics).unwrap();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let get = answer(b"GET /metrics HTTP/1.1\r\n\r\n");
    assert!(get.starts_with("HTTP/1.0 200 OK") && get.contains("# TYPE"));
    let head = answer(b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.0 200 OK") && head.ends_with("\r\n\r\n"));
    for request in [
        "POST / HTTP/1.1",
        "DELETE / HTTP/1.1",
        "get /",
        "",
        "GETX / HTTP/1.1",
    ] {
        let text = answer(format!("{request}\r\n\r\n").as_bytes());
        assert!(text.starts_with("HTTP/1.0 405 "), "{request}: {text}");
        assert!(!text.contains("# TYPE"));
    }
}

/// Without a descriptor for a connection the control loop would be told of it again and again: the
/// connection is closed instead.
#[test]
fn metrics_clients_are_turned_away_when_descriptors_run_out() {
    use rustix::process::{Resource, Rlimit, prlimit};
    let (backend, metrics) = Backend::start_with_metrics(&["--memory-size", "1M"]);
    curl(&metrics);
    let limit = |current| {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(1024),
        };
        prlimit(Some(backend.pid()), Resource::Nofile, limit).unwrap();
    };
    // All lower numbers are in use.
    let taken = |number: &u64| {
        let path = format!("/proc/{}/fd/{number}", backend.pid().as_raw_nonzero());
        std::fs::symlink_metadata(path).is_ok()
    };
    limit((0..).find(|number| !taken(number)).unwrap());
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&metrics).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // Closed, before or after the request could be read.
        match stream.read(&mut [0; 64]) {
            Ok(count) => assert_eq!(count, 0),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
    }
    limit(1024);
    assert!(curl(&metrics).contains("vdma_front_ends_total"));
}
