//! The command line: errors, sockets, and the kinds of device memory.

use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use vdma_protocol::Operation;

use crate::support::{Backend, DATA, DEADLINE, FrontEnd, Request};

#[test]
fn start_up_errors_are_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let socket = path("socket");
    std::fs::write(path("file"), b"not a socket").unwrap();
    std::fs::write(path("odd"), vec![0; 5000]).unwrap();
    std::fs::write(path("small"), vec![0; 8192]).unwrap();
    let fails = |arguments: &[&str], reason: &str| {
        let output = Backend::command().args(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(text.contains(reason), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.matches("os error").count() <= 1, "{text}");
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
        "odd holds 5000 bytes, which is not a multiple of 4096; `truncate --size 8192` it",
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
    let backend = Backend::start(&[]);
    let taken = backend.socket();
    fails(
        &["-s", taken.to_str().unwrap()],
        "in use by another process",
    );
}

#[test]
fn usage_errors_exit_with_2_and_name_the_remedy() {
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
        let output = Backend::command().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(remedy), "{arguments:?}: {text}");
    }
}

#[test]
fn help_groups_options_and_shows_a_qemu_command() {
    let output = Backend::command().arg("--help").output().unwrap();
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

/// QEMU's conventions for backends: other arguments are ignored.
#[test]
fn print_capabilities_ignores_other_arguments() {
    let alone = Backend::command()
        .arg("--print-capabilities")
        .output()
        .unwrap();
    assert!(alone.status.success());
    for others in [
        &["-s", "x"][..],
        &["--no-such-option"],
        &["--fd", "77", "-c", "3"],
    ] {
        let mut command = Backend::command();
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
fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vdma.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let begin = Instant::now();
    // A child forked by another test at this moment holds the listener, too, until it executes.
    while UnixStream::connect(&socket).is_ok() {
        assert!(begin.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
    let mut command = Backend::command();
    command.arg("-s").arg(&socket);
    let backend = Backend::spawn(command, directory);
    while UnixStream::connect(&socket).is_err() {
        assert!(begin.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(2));
    }
    backend.end();
    assert!(!socket.exists());
}

#[test]
fn an_inherited_socket_is_used() {
    use std::os::fd::AsRawFd;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("inherited");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // The child gets a duplicate without close-on-exec.
    let fd = rustix::io::fcntl_dupfd_cloexec(&listener, 10).unwrap();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let mut command = Backend::command();
    command.args(["--fd", &fd.as_raw_fd().to_string(), "--memory-size=1M"]);
    let backend = Backend::spawn(command, tempfile::tempdir().unwrap());
    drop((fd, listener));
    let mut front = FrontEnd::connect(&socket);
    front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    drop(front);
    backend.end();
    assert!(socket.exists(), "the parent's socket file was removed");
}

#[test]
fn each_device_has_its_own_memory() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [0, 1].map(|index| directory.path().join(format!("s{index}")));
    let mut command = Backend::command();
    command
        .arg("-s")
        .arg(directory.path().join("s"))
        .args(["-c", "2", "--memory-size=1M"]);
    let mut backend = Backend::spawn(command, directory);
    sockets.iter().for_each(|socket| backend.await_file(socket));
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
fn a_memory_file_persists_and_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory").to_str().unwrap().to_owned();
    let other = tempfile::tempdir().unwrap();
    let backend = Backend::start_in(directory, &["--memory-file", &path, "--memory-size=1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    front.guest.write(DATA, b"kept");
    front.call(
        0,
        &Request::new(Operation::Write, 77, 4, 0).outgoing(DATA, 4),
    );
    // STATE_PERSISTENT and STATE_BAR_MAPPED.
    assert_eq!(front.config_word(36), 3);
    for share in [&[][..], &["--share"]] {
        let socket = other.path().join("socket");
        let mut command = Backend::command();
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
    backend.end();
    // A front end that still maps the memory holds the lock, too.
    let unlocked = std::fs::File::open(&kept).unwrap();
    let begin = Instant::now();
    while unlocked.try_lock_shared().is_err() {
        assert!(
            begin.elapsed() < DEADLINE,
            "the front end still maps the memory"
        );
        std::thread::yield_now();
    }
    drop(unlocked);
    // Two backends share the file; each reads what the other writes.
    let kept = kept.to_str().unwrap();
    let backends = [(), ()].map(|()| Backend::start(&["--memory-file", kept, "--share"]));
    let mut fronts = backends
        .each_ref()
        .map(|backend| FrontEnd::connect(&backend.socket()));
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
fn huge_pages_are_reserved_at_start_up_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vdma.sock");
    let mut command = Backend::command();
    command
        .arg("-s")
        .arg(&socket)
        .args(["--hugepages", "--memory-size=1G", "--once"]);
    let mut backend = Backend::spawn(command, directory);
    let begin = Instant::now();
    while !socket.exists() && backend.is_running() && begin.elapsed() < DEADLINE {
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
        assert!(backend.wait().0.success());
    } else {
        let (status, log) = backend.wait();
        println!("huge pages themselves not checked: this machine has too few of them");
        assert_eq!(status.code(), Some(1));
        assert!(log.contains("huge page"), "{log}");
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}

/// Sixty-four devices of sixteen queues need thousands of descriptors.
#[test]
fn the_soft_limit_on_open_files_is_raised() {
    let mut command = std::process::Command::new("sh");
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vdma.sock");
    let script = "ulimit -S -n 50; exec \"$0\" \"$@\"";
    command
        .args(["-c", script, env!("CARGO_BIN_EXE_vhost-device-dma"), "-s"])
        .arg(&socket);
    let mut backend = Backend::spawn(command, directory);
    backend.await_file(&socket);
    let limits = format!("/proc/{}/limits", backend.pid().as_raw_nonzero());
    let limits = std::fs::read_to_string(limits).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut numbers = line.unwrap().split_whitespace().skip(3);
    assert_eq!(numbers.next(), numbers.next(), "{limits}");
}

/// The variable is shared with other programs: whatever they understand does not stop the backend.
#[test]
fn rust_log_may_be_empty_or_name_another_crate() {
    for value in ["", "qemu", "other_crate=debug", "vhost_device_dma", "loud"] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vdma.sock");
        let mut command = Backend::command();
        command.arg("-s").arg(&socket).env("RUST_LOG", value);
        let mut backend = Backend::spawn(command, directory);
        backend.await_file(&socket);
        backend.end();
    }
}

/// A path may be as long as the kernel lets a client connect to: 107 bytes.
#[test]
fn the_longest_socket_path() {
    let directory = tempfile::tempdir().unwrap();
    let length = directory.path().as_os_str().len() + 1;
    for total in [104, 107] {
        let socket = directory.path().join("s".repeat(total - length));
        let mut command = Backend::command();
        command.args(["--memory-size", "1M", "-s"]).arg(&socket);
        let mut backend = Backend::spawn(command, tempfile::tempdir().unwrap());
        backend.await_file(&socket);
        let mut front = FrontEnd::connect(&socket);
        let nop = Request::new(Operation::Nop, 0, 0, 0);
        assert_eq!(front.call(0, &nop).0.status(), vdma_protocol::Status::OK);
        drop(front);
        backend.end();
        assert!(!socket.exists());
    }
    let socket = directory.path().join("s".repeat(108 - length));
    let output = Backend::command().arg("-s").arg(&socket).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("at most 107"), "{text}");
}
