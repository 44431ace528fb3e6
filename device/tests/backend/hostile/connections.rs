//! Front ends that send invalid messages, disconnect early, or stay idle.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use vdma_protocol::Operation;
use vhost::{VhostBackend, VringConfigData, vhost_user::VhostUserFrontend};

use super::{assert_works, connect, two_queues};
use crate::support::{Backend, Connect, DEADLINE, FrontEnd, Request, await_event, curl};

#[test]
fn ring_messages_early_repeated_and_out_of_range() {
    let mut backend = Backend::start(&["--memory-size", "1M"]);
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
    // Addresses before any memory table.
    let front = FrontEnd::handshake(&backend.socket(), &options);
    front.frontend.set_vring_num(0, 256).unwrap();
    front.frontend.set_vring_addr(0, &config).unwrap_err();
    drop(front);
    // A kick before anything else, and enabling a ring that was never configured.
    let mut front = FrontEnd::handshake(&backend.socket(), &options);
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    front.frontend.set_features(options.features).unwrap();
    front.frontend.set_vring_kick(0, &event).unwrap();
    front.frontend.set_vring_enable(0, true).unwrap();
    event.write(1).unwrap();
    drop(front);
    // The same messages repeatedly while the ring runs: nothing is lost.
    let mut front = FrontEnd::connect(&backend.socket());
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
    assert!(backend.is_running());
}

#[test]
fn kick_descriptors_that_are_not_eventfds() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let (mut backend, mut front) = two_queues();
    let (end, other) = UnixStream::pair().unwrap();
    drop(other);
    // SAFETY: `into_raw_fd` has released the descriptor's only owner.
    let closed = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(end.into_raw_fd()) };
    let file = tempfile::tempfile().unwrap();
    // SAFETY: `into_raw_fd` has released the descriptor's only owner.
    let file = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(file.into_raw_fd()) };
    for kick in [closed, file] {
        front.frontend.set_vring_kick(0, &kick).unwrap();
        assert_works(&mut front, 1);
    }
    let ring = &front.rings[0];
    front.frontend.set_vring_kick(0, &ring.kick).unwrap();
    assert_works(&mut front, 0);
    assert!(backend.is_running());
}

#[test]
fn a_full_blocking_call_descriptor() {
    let (backend, mut front) = two_queues();
    let full = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    front.frontend.set_vring_call(0, &full).unwrap();
    assert!(await_event(&full, DEADLINE));
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
    let mut front = connect(&backend);
    assert_works(&mut front, 0);
}

#[test]
fn truncated_and_malformed_messages() {
    let mut backend = Backend::start(&["--memory-size", "1M"]);
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
        let mut stream = UnixStream::connect(backend.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 64]);
        drop(stream);
        let mut front = FrontEnd::connect(&backend.socket());
        assert_works(&mut front, 0);
    }
    assert!(backend.is_running());
}

#[test]
fn a_second_front_end_waits_for_the_first() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut first = FrontEnd::connect(&backend.socket());
    assert_works(&mut first, 0);
    let socket = backend.socket();
    let second = std::thread::spawn(move || {
        let mut second = FrontEnd::connect(&socket);
        assert_works(&mut second, 0);
    });
    assert_works(&mut first, 0);
    drop(first);
    second.join().unwrap();
}

#[test]
fn an_idle_connection_is_dropped_for_the_next() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let silent = UnixStream::connect(backend.socket()).unwrap();
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    drop(silent);
}

#[test]
fn a_front_end_that_never_replies_to_the_bar_mapping() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let deaf = Connect::default();
    let held = deaf.map_reply.lock().unwrap();
    for _ in 0..3 {
        // Disconnects while the reply is outstanding, and keeps its end of the channel.
        drop(FrontEnd::connect_with(&backend.socket(), &deaf));
    }
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    assert_eq!(front.config_word(36), vdma_protocol::STATE_BAR_MAPPED);
    backend.end();
    drop(held);
}

#[test]
fn reconnecting_front_ends_leak_nothing() {
    let backend = Backend::start(&["--memory-size", "1M", "--num-queues", "2"]);
    let process = format!("/proc/{}", backend.pid().as_raw_nonzero());
    let count = |what: &str| {
        std::fs::read_dir(format!("{process}/{what}"))
            .unwrap()
            .count()
    };
    let visit = || {
        let mut front = connect(&backend);
        assert_works(&mut front, 1);
    };
    // Counts descriptors and threads with one front end connected.
    let connected = |visits: usize| {
        (0..visits).for_each(|_| visit());
        let mut front = connect(&backend);
        assert_works(&mut front, 0);
        let begin = std::time::Instant::now();
        move || {
            let _ = &front;
            assert!(begin.elapsed() < DEADLINE);
            (count("fd"), count("task"))
        }
    };
    let first = {
        let count = connected(1);
        count()
    };
    let count = connected(200);
    // Threads may be about to start or to end at both counts; a leak by each front end would show
    // 200 times.
    const IN_TRANSIT: usize = 8;
    while count().0 > first.0 + IN_TRANSIT || count().1 > first.1 + IN_TRANSIT {
        std::thread::yield_now();
    }
}

/// When descriptors run out, a new front end waits until some are free again; the backend neither
/// exits nor spins.
#[test]
fn recovery_after_running_out_of_descriptors() {
    use rustix::process::{Resource, Rlimit, prlimit};
    let (backend, metrics) = Backend::start_with_metrics(&["--memory-size", "1M"]);
    // Once the control loop replies, everything is set up that does not belong to a front end.
    curl(&metrics);
    // All lower numbers are in use. Higher ones may be, if the test's process passed them on.
    let taken = |number: &u64| {
        let path = format!("/proc/{}/fd/{number}", backend.pid().as_raw_nonzero());
        std::fs::symlink_metadata(path).is_ok()
    };
    let open = (0..).find(|number| !taken(number)).unwrap();
    let limit = |current| {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(1024),
        };
        prlimit(Some(backend.pid()), Resource::Nofile, limit).unwrap();
    };
    limit(open);
    let unserved = UnixStream::connect(backend.socket()).unwrap();
    backend.await_log("trying again");
    // Each step of setting up a front end fails once.
    for spare in 0..12 {
        limit(open + spare);
        let mut stream = UnixStream::connect(backend.socket()).unwrap();
        let _ = stream.write_all(&[1; 12]);
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    drop(unserved);
    limit(1024);
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    drop(front);
    let log = backend.end();
    assert!(log.lines().count() < 100, "{log}");
}

/// Protocol features that the backend does not offer are not accepted: memory cannot be added
/// region by region, and each region would cost a descriptor and a mapping.
#[test]
fn features_that_were_not_offered_are_not_accepted() {
    use vhost::vhost_user::message::VhostUserProtocolFeatures;
    let mut backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::handshake(&backend.socket(), &Connect::default());
    let offered = front.frontend.get_protocol_features().unwrap();
    let unasked = VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
    assert!(!offered.contains(unasked));
    let _ = front.frontend.set_protocol_features(offered | unasked);
    let descriptors = format!("/proc/{}/fd", backend.pid().as_raw_nonzero());
    let count = || std::fs::read_dir(&descriptors).unwrap().count();
    let before = count();
    let mut added = 0;
    for number in 0..300u64 {
        let guest = crate::support::Guest::new();
        let mut region = guest.table()[0];
        region.guest_phys_addr = number << 32;
        region.userspace_addr = (number + 1) << 32;
        if front.frontend.add_mem_region(&region).is_err() {
            break;
        }
        added += 1;
    }
    // The first one cannot be told from a table of one region.
    assert!(added <= 1, "{added} regions were added");
    assert!(count() <= before + 8, "{} descriptors", count());
    drop(front);
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    assert!(backend.is_running());
}

/// With `--once` the backend serves one front end. Another instance that is started by mistake, a
/// port scanner or a health check is none.
#[test]
fn once_is_not_ended_by_a_probe() {
    let backend = Backend::start(&["--memory-size", "1M", "--once"]);
    let socket = backend.socket();
    let output = Backend::command()
        .args(["-s", socket.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    drop(UnixStream::connect(&socket).unwrap());
    let mut front = FrontEnd::connect(&socket);
    assert_works(&mut front, 0);
    drop(front);
    assert!(backend.wait().0.success());
}

/// Descriptors that are no event counters are refused: they could block a queue's thread, or be
/// used to write into files.
#[test]
fn calls_that_are_not_eventfds_are_refused() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let (backend, mut front) = two_queues();
    let file = tempfile::tempfile().unwrap();
    let kept = file.try_clone().unwrap();
    let (pipe_end, _other) = UnixStream::pair().unwrap();
    for call in [file.into_raw_fd(), pipe_end.into_raw_fd()] {
        // SAFETY: `into_raw_fd` has released the descriptor's only owner.
        let call = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(call) };
        front.frontend.set_vring_call(0, &call).unwrap();
        front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), 0);
        front.kick(0);
        let ring = &front.rings[0];
        let begin = std::time::Instant::now();
        while ring.used_index(&front.guest) == ring.next_used {
            assert!(begin.elapsed() < DEADLINE);
            std::thread::yield_now();
        }
        let guest = front.guest.clone();
        front.rings[0].pop_used(&guest).unwrap();
        assert_eq!(kept.metadata().unwrap().len(), 0);
    }
    let ring = &front.rings[0];
    front.frontend.set_vring_call(0, &ring.call).unwrap();
    assert_works(&mut front, 0);
    drop(front);
    let log = backend.end();
    assert_eq!(log.matches("not an eventfd").count(), 2, "{log}");
}

/// A front end can take `O_NONBLOCK` away at any time, since the flag belongs to the description
/// that both sides share. A queue's thread that its counter blocks keeps nothing else from going
/// on: neither the front end's messages, nor the next front end.
#[test]
fn a_call_descriptor_that_is_full_and_made_blocking() {
    let (mut backend, mut front) = two_queues();
    for _ in 0..20 {
        let full = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        front.frontend.set_vring_call(0, &full).unwrap();
        assert_works_silently(&mut front, 0);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Fills the counter again and again, as a blocking one.
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::fcntl_getfl(as_fd(&full)).unwrap();
                    let blocking = flags - rustix::fs::OFlags::NONBLOCK;
                    rustix::fs::fcntl_setfl(as_fd(&full), blocking).unwrap();
                    let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                        as_fd(&full),
                        rustix::event::PollFlags::OUT,
                    )];
                    let now = rustix::event::Timespec::default();
                    if rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1 {
                        rustix::fs::fcntl_setfl(as_fd(&full), flags | rustix::fs::OFlags::NONBLOCK)
                            .unwrap();
                        let _ = full.write(u64::MAX - 1);
                        rustix::fs::fcntl_setfl(as_fd(&full), blocking).unwrap();
                    }
                }
            });
            for slot in 0..8 {
                front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), slot);
                front.kick(0);
                assert_works(&mut front, 1);
            }
            front.stop_ring(0);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let guest = front.guest.clone();
        while front.rings[0].pop_used(&guest).is_some() {}
        // What was not taken before the stop is not repeated.
        let ring = &mut front.rings[0];
        ring.next_available = ring.next_used;
        guest.write(ring.available + 2, &ring.next_available.to_le_bytes());
        front.start_ring(0);
        assert_works(&mut front, 0);
    }
    drop(front);
    let mut front = connect(&backend);
    assert_works(&mut front, 0);
    assert!(backend.is_running());
}

fn as_fd(event: &vmm_sys_util::eventfd::EventFd) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor stays open while `event` is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Sends a request and polls for its completion.
fn assert_works_silently(front: &mut FrontEnd, queue: usize) {
    front.submit(queue, &Request::new(Operation::Nop, 0, 0, 0), 0);
    front.kick(queue);
    let guest = front.guest.clone();
    let begin = std::time::Instant::now();
    while front.rings[queue].pop_used(&guest).is_none() {
        assert!(begin.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
}

/// Moving a running ring to where it already is, which some front ends do, loses no completion.
#[test]
fn set_vring_addr_on_a_running_ring_loses_nothing() {
    let (_backend, mut front) = two_queues();
    let ring = &front.rings[0];
    let config = VringConfigData {
        queue_max_size: 1024,
        queue_size: ring.size,
        flags: 0,
        desc_table_addr: front.guest.host_address(ring.descriptors),
        used_ring_addr: front.guest.host_address(ring.used),
        avail_ring_addr: front.guest.host_address(ring.available),
        log_addr: None,
    };
    let frontend = front.frontend.clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                frontend.set_vring_addr(0, &config).unwrap();
            }
        });
        let mut lost = false;
        'rounds: for _ in 0..3_000 {
            for slot in 0..8 {
                front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), slot);
            }
            front.kick(0);
            let guest = front.guest.clone();
            for slot in 0..8u32 {
                let begin = std::time::Instant::now();
                let used = loop {
                    if let Some(used) = front.rings[0].pop_used(&guest) {
                        break used;
                    }
                    if begin.elapsed() > DEADLINE {
                        lost = true;
                        break 'rounds;
                    }
                    std::thread::yield_now();
                };
                lost |= used.id != slot;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        mover.join().unwrap();
        assert!(!lost, "a completion was lost");
    });
}

/// Without a reply it is unknown whether the BAR is mapped: after a while it counts as not mapped,
/// and requests are served.
#[test]
fn a_map_request_that_is_never_answered_holds_no_requests_for_ever() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let deaf = Connect::default();
    let held = deaf.map_reply.lock().unwrap();
    let mut front = FrontEnd::connect_with(&backend.socket(), &deaf);
    assert_works(&mut front, 0);
    assert_eq!(front.config_word(36), 0);
    drop(held);
    drop(front);
    let log = backend.end();
    assert!(log.contains("does not answer"), "{log}");
}

#[test]
fn without_replies_the_bar_does_not_count_as_mapped() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect {
        reply_ack: false,
        ..Connect::default()
    };
    let held = options.map_reply.lock().unwrap();
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    assert_works(&mut front, 0);
    assert_eq!(front.config_word(36), 0);
    drop(held);
}

/// The front end decides how many connections it makes and how they end; the log stays short.
#[test]
fn a_front_end_cannot_flood_the_log() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    for _ in 0..400 {
        let mut stream = UnixStream::connect(backend.socket()).unwrap();
        stream.write_all(&[0xff; 64]).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    let mut front = FrontEnd::connect(&backend.socket());
    assert_works(&mut front, 0);
    drop(front);
    let log = backend.end();
    assert!(log.lines().count() < 250, "{}", log.lines().count());
}

/// A terminal that is stopped or a full pipe must not stop the device.
#[test]
fn a_stuck_standard_error_blocks_no_queue() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vdma.sock");
    // Nothing is ever read from this pipe.
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut command = Backend::command();
    command
        .args(["--memory-size", "1M", "--log-level", "debug", "-s"])
        .arg(&socket)
        .stderr(writer);
    if !crate::support::is_sandboxed() {
        command.args(["--seccomp=none", "--no-landlock"]);
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    let begin = std::time::Instant::now();
    while !socket.exists() {
        assert!(begin.elapsed() < DEADLINE);
        std::thread::yield_now();
    }
    let mut front = FrontEnd::connect(&socket);
    // At this level each request is logged; a pipe holds 64 KiB.
    for _ in 0..3_000 {
        assert_works(&mut front, 0);
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let begin = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > DEADLINE {
            child.kill().unwrap();
        }
        assert!(begin.elapsed() <= DEADLINE, "the backend does not exit");
        std::thread::sleep(Duration::from_millis(2));
    }
}
