//! Metrics, the summary, signals, and the command line's conventions.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vdma_protocol::Operation;

use crate::support::{Connect, DATA, Daemon, FrontEnd, Request, curl};

fn value(text: &str, line: &str) -> f64 {
    text.lines()
        .find_map(|candidate| candidate.strip_prefix(line)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("no {line} in\n{text}"))
}

#[test]
fn metrics_count_what_was_done() {
    // Polling finds requests without a kick.
    let (daemon, metrics) = Daemon::start_with_metrics(&["--memory-size=1M", "--poll-us=0"]);
    let mut front = FrontEnd::connect(&daemon.socket());
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
    // A request may be found before its kick, which is then taken when the queue goes to sleep.
    let begin = Instant::now();
    let text = loop {
        let text = curl(&metrics);
        if value(&text, &format!("vdma_kicks_total{{{queue}}}")) >= 1.0 {
            break text;
        }
        assert!(begin.elapsed() < crate::support::DEADLINE, "{text}");
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
fn a_metrics_client_that_says_nothing_stops_nobody() {
    let (daemon, metrics) = Daemon::start_with_metrics(&[]);
    let mut silent: Vec<UnixStream> = (0..40)
        .map(|_| UnixStream::connect(&metrics).unwrap())
        .collect();
    assert!(curl(&metrics).contains("vdma_front_ends_total"));
    // The oldest had to give way.
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0);
    let (status, _) = daemon.end();
    assert!(status.success());
    assert!(!metrics.exists());
}

/// Clients that speak slowly, or hang up, are waited for or forgotten.
#[test]
fn metrics_requests_in_pieces() {
    let (_daemon, metrics) = Daemon::start_with_metrics(&["--num-queues=16"]);
    for pieces in [
        &["GET /met", "rics HTTP/1.1\r\n", "Host: x\r\n", "\r\n"][..],
        &["GET /\n", "\n"],
        &["anything at all"],
    ] {
        let mut stream = UnixStream::connect(&metrics).unwrap();
        for piece in pieces {
            stream.write_all(piece.as_bytes()).unwrap();
            // Whoever comes meanwhile is answered.
            assert!(curl(&metrics).contains("vdma_front_ends_total"));
        }
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200 OK"), "{text}");
    }
    let long = "x".repeat(10_000);
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
    let daemon = Daemon::start(&["--log-level", "off"]);
    let mut front = FrontEnd::connect(&daemon.socket());
    for _ in 0..7 {
        front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    }
    daemon.signal(Signal::USR1);
    daemon.signal(Signal::HUP);
    front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    let (status, log) = daemon.end();
    assert!(status.success());
    assert!(log.contains("device 0: 1 front ends so far"), "{log}");
    assert!(log.contains("nop"), "{log}");
}

/// The bound is the specification's; a daemon that waited for the load to end would never end.
#[test]
fn sigterm_under_load_ends_at_once_with_the_memory_flushed() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory");
        let kept = directory.path().join("kept");
        let arguments = ["--num-queues=2", "--memory-size=64M", "--memory-file"];
        let mut arguments: Vec<&str> = arguments.to_vec();
        arguments.push(file.to_str().unwrap());
        let daemon = Daemon::start_in(directory, &arguments);
        let options = Connect {
            num_queues: 2,
            ..Connect::default()
        };
        let mut front = FrontEnd::connect_with(&daemon.socket(), &options);
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
        daemon.signal(signal);
        let mut bytes = [0; 10];
        std::fs::File::open(&kept)
            .unwrap()
            .read_exact(&mut bytes)
            .unwrap();
        let (status, log) = daemon.wait();
        eprintln!("{signal:?}: ended after {:?}", begin.elapsed());
        assert!(status.success(), "{log}");
        assert_eq!(&bytes, b"still here");
    }
}

#[test]
fn sigterm_does_not_wait_for_a_request_of_the_largest_size() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(directory, &["--memory-size=1G"]);
    let mut front = FrontEnd::connect(&daemon.socket());
    let checksum = Request::new(Operation::Crc32c, 0, 1 << 30, 0);
    for slot in 0..100 {
        front.submit(0, &checksum, slot);
    }
    front.kick(0);
    daemon.signal(Signal::TERM);
    let socket = daemon.socket();
    let (status, log) = daemon.wait();
    assert!(status.success(), "{log}");
    assert!(!socket.exists());
}

#[test]
fn the_daemon_fails_early_with_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let socket = path("socket");
    std::fs::write(path("file"), b"not a socket").unwrap();
    std::fs::write(path("odd"), vec![0; 5000]).unwrap();
    std::fs::write(path("small"), vec![0; 8192]).unwrap();
    let fails = |arguments: &[&str], reason: &str| {
        let output = Daemon::command().args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.contains(reason), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!std::path::Path::new(&socket).exists());
    };
    fails(&["-s", "/nonexistent/directory/socket"], "cannot listen at");
    fails(&["-s", &path("file")], "is not a socket");
    fails(&["-s", &socket, "--memory-size", "100"], "try 4K");
    fails(&["-s", &socket, "--memory-size", "0"], "try 4K");
    fails(
        &["-s", &socket, "--memory-size", "8388607T"],
        "device memory",
    );
    fails(
        &["-s", &socket, "--memory-file", &path("odd")],
        "not a multiple",
    );
    let small = path("small");
    fails(
        &[
            "-s",
            &socket,
            "--memory-file",
            &small,
            "--memory-size",
            "1M",
        ],
        "holds 8192 bytes",
    );
    fails(
        &["-s", &socket, "--memory-file", "/dev/null"],
        "not a regular file",
    );
    fails(&["--fd", "1"], "not a listening");
    fails(&["--fd", "900"], "not a listening");
    let daemon = Daemon::start(&[]);
    let taken = daemon.socket();
    fails(
        &["-s", taken.to_str().unwrap()],
        "in use by another process",
    );
}

#[test]
fn usage_errors_end_with_two_and_name_the_remedy() {
    for (arguments, remedy) in [
        (&[][..], "--socket-path <PATH>|--fd <N>"),
        (&["-s", "x", "--fd", "3"], "cannot be used with"),
        (&["-s", "x", "--num-queues", "0"], "1..=16"),
        (&["-s", "x", "--num-queues", "17"], "1..=16"),
        (
            &["-s", "x", "--queue-size", "100"],
            "power of two from 2 to 1024",
        ),
        (
            &["-s", "x", "--queue-size", "2048"],
            "power of two from 2 to 1024",
        ),
        (&["-s", "x", "--memory-size", "1Q"], "write digits"),
        (&["-s", "x", "--share"], "--memory-file"),
        (&["-s", "x", "--threads", "0"], "1..=16"),
        (
            &["-s", "x", "--threads", "2"],
            "choose at most --num-queues (1)",
        ),
        (&["-s", "x", "--fault", "drop,queue=1"], "queues are 0 to 0"),
        (&["-s", "x", "--seccomp", "some"], "none, log, kill"),
        (
            &["-s", "x", "--log-level", "loud"],
            "write error, warn, info",
        ),
        (
            &["-s", "x", "--log-level", "info,vhost=loud"],
            "write error, warn, info",
        ),
        (&["-s", "x", "--log-level", ""], "write error, warn, info"),
    ] {
        let output = Daemon::command().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(remedy), "{arguments:?}: {text}");
    }
    let mut command = Daemon::command();
    command
        .args(["-s", "x"])
        .env("RUST_LOG", "vhost_device_dma");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn log_levels_choose_what_is_logged() {
    for (level, wanted) in [
        ("debug", [true, true]),
        ("info", [true, false]),
        ("warn", [false, false]),
        ("warn,vhost_device_dma::vhost_user=debug", [false, true]),
    ] {
        let daemon = Daemon::start(&["--log-level", level]);
        let mut front = FrontEnd::connect(&daemon.socket());
        front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
        let (_, log) = daemon.end();
        let found = ["SIGTERM: ending", "device 0: features"].map(|line| log.contains(line));
        assert_eq!(found, wanted, "{level}: {log}");
    }
}

#[test]
fn debug_lines_name_device_queue_and_head() {
    let daemon = Daemon::start(&["--log-level=debug", "--num-queues=2"]);
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&daemon.socket(), &options);
    front.submit(1, &Request::new(Operation::Fill, 0, 100, 0), 17);
    front.kick(1);
    front.wait(1);
    let (_, log) = daemon.end();
    let line = "device 0 queue 1: head 17: fill: ";
    assert!(log.contains(line), "{log}");
}

/// Nobody waits for time to pass: each waking of a thread would be counted by the kernel.
#[test]
fn an_idle_daemon_does_not_wake() {
    let daemon = Daemon::start(&["--num-queues=4", "--threads=3", "--memory-size=1M"]);
    let options = Connect {
        num_queues: 4,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&daemon.socket(), &options);
    for queue in 0..4 {
        front.call(queue, &Request::new(Operation::Nop, 0, 0, 0));
    }
    let switches = || {
        let tasks = format!("/proc/{}/task", daemon.pid().as_raw_nonzero());
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
    // The last request may still be about to end: two looks in a row have to agree.
    let begin = Instant::now();
    let mut before = switches();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let after = switches();
        if before == after {
            break;
        }
        assert!(begin.elapsed() < crate::support::DEADLINE, "{after:?}");
        before = after;
    }
}

#[test]
fn help_groups_options_and_shows_a_line_for_qemu() {
    let output = Daemon::command().arg("--help").output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "Front end:",
        "Device memory:",
        "Queues:",
        "Faults:",
        "Sandbox:",
        "Observation:",
        "-device vhost-user-test-device-pci,chardev=c0,virtio-id=37",
        "FAULT is KIND[=VALUE][,SELECTOR=VALUE]...",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// QEMU's conventions for back ends: other arguments are ignored.
#[test]
fn capabilities_are_printed_whatever_else_is_given() {
    let alone = Daemon::command()
        .arg("--print-capabilities")
        .output()
        .unwrap();
    assert!(alone.status.success());
    for others in [
        &["-s", "x"][..],
        &["--no-such-option"],
        &["--fd", "77", "-c", "3"],
    ] {
        let mut command = Daemon::command();
        let output = command
            .args(others)
            .arg("--print-capabilities")
            .output()
            .unwrap();
        assert!(output.status.success(), "{others:?}");
        assert_eq!(output.stdout, alone.stdout);
    }
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vdma.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let mut command = Daemon::command();
    command.arg("-s").arg(&socket);
    let daemon = Daemon::spawn(command, directory);
    let begin = Instant::now();
    while UnixStream::connect(&socket).is_err() {
        assert!(begin.elapsed() < crate::support::DEADLINE);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(daemon.end().0.success());
    assert!(!socket.exists());
}

#[test]
fn several_devices_have_memories_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [0, 1].map(|index| directory.path().join(format!("s{index}")));
    let mut command = Daemon::command();
    command
        .arg("-s")
        .arg(directory.path().join("s"))
        .args(["-c", "2", "--memory-size=1M"]);
    let mut daemon = Daemon::spawn(command, directory);
    sockets.iter().for_each(|socket| daemon.await_file(socket));
    let mut fronts = sockets.map(|socket| FrontEnd::connect(&socket));
    for (front, byte) in fronts.iter_mut().zip(1u8..) {
        front.guest.write(DATA, &[byte]);
        front.call(
            0,
            &Request::new(Operation::Write, 0, 1, 0).outgoing(DATA, 1),
        );
    }
    for (front, byte) in fronts.iter_mut().zip(1u8..) {
        front.call(
            0,
            &Request::new(Operation::Read, 0, 1, 0).incoming(DATA + 8, 1),
        );
        assert_eq!(front.guest.bytes(DATA + 8, 1), [byte]);
    }
}

#[test]
fn an_inherited_socket_is_listened_on() {
    use std::os::fd::AsRawFd;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("inherited");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // The child gets a duplicate without close-on-exec.
    let fd = rustix::io::fcntl_dupfd_cloexec(&listener, 10).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let mut command = Daemon::command();
    command.args(["--fd", &fd.as_raw_fd().to_string(), "--memory-size=1M"]);
    let daemon = Daemon::spawn(command, tempfile::tempdir().unwrap());
    drop((fd, listener));
    let mut front = FrontEnd::connect(&socket);
    front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    drop(front);
    assert!(daemon.end().0.success());
    assert!(socket.exists(), "the parent's socket is the parent's");
}

#[test]
fn a_memory_file_survives_and_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory").to_str().unwrap().to_owned();
    let other = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_in(directory, &["--memory-file", &path, "--memory-size=1M"]);
    let mut front = FrontEnd::connect(&daemon.socket());
    front.guest.write(DATA, b"kept");
    front.call(
        0,
        &Request::new(Operation::Write, 77, 4, 0).outgoing(DATA, 4),
    );
    // STATE_PERSISTENT and STATE_BAR_MAPPED.
    assert_eq!(front.config_word(36), 3);
    for share in [&[][..], &["--share"]] {
        let socket = other.path().join("socket");
        let mut command = Daemon::command();
        command
            .arg("-s")
            .arg(socket)
            .args(["--memory-file", &path])
            .args(share);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("in use by another")
        );
    }
    drop(front);
    let kept = other.path().join("kept");
    std::fs::hard_link(&path, &kept)
        .or_else(|_| std::fs::copy(&path, &kept).map(drop))
        .unwrap();
    assert!(daemon.end().0.success());
    // Two daemons share it; what one writes the other reads.
    let kept = kept.to_str().unwrap();
    let daemons = [(), ()].map(|()| Daemon::start(&["--memory-file", kept, "--share"]));
    let mut fronts = daemons
        .each_ref()
        .map(|daemon| FrontEnd::connect(&daemon.socket()));
    for front in &mut fronts {
        front.call(
            0,
            &Request::new(Operation::Read, 77, 4, 0).incoming(DATA, 4),
        );
        assert_eq!(front.guest.bytes(DATA, 4), b"kept");
        assert_eq!(front.config_word(36), 7);
    }
    fronts[0].guest.write(DATA, b"both");
    fronts[0].call(
        0,
        &Request::new(Operation::Write, 0, 4, 0).outgoing(DATA, 4),
    );
    fronts[1].call(0, &Request::new(Operation::Read, 0, 4, 0).incoming(DATA, 4));
    assert_eq!(fronts[1].guest.bytes(DATA, 4), b"both");
}

#[test]
fn huge_pages_are_reserved_at_the_start_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vdma.sock");
    let mut command = Daemon::command();
    command
        .arg("-s")
        .arg(&socket)
        .args(["--hugepages", "--memory-size=1G", "--once"]);
    let mut daemon = Daemon::spawn(command, directory);
    let begin = Instant::now();
    while !socket.exists() && daemon.is_running() && begin.elapsed() < crate::support::DEADLINE {
        std::thread::sleep(Duration::from_millis(2));
    }
    if socket.exists() {
        let mut front = FrontEnd::connect(&socket);
        let fill = Request::new(Operation::Fill, 0, 1 << 30, u64::MAX);
        assert_eq!(front.call(0, &fill).0.status(), vdma_protocol::Status::OK);
        let discard = Request::new(Operation::Discard, 1, (1 << 30) - 2, 0);
        assert_eq!(
            front.call(0, &discard).0.status(),
            vdma_protocol::Status::OK
        );
        drop(front);
        assert!(daemon.wait().0.success());
    } else {
        let (status, log) = daemon.wait();
        println!("huge pages themselves not checked: this machine has not enough of them");
        assert_eq!(status.code(), Some(1));
        assert!(log.contains("huge page"), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}
