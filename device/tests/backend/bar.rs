//! The BAR: when it is mapped, and how the driver learns about it.

use std::sync::MutexGuard;

use vdma_protocol::{CONFIG_MAGIC, FEATURE_BAR, Operation, STATE_BAR_MAPPED, Status};

use crate::support::{Backend, Connect, DEADLINE, FEATURES, FrontEnd, Request};

fn nop() -> Request {
    Request::new(Operation::Nop, 0, 0, 0)
}

fn is_mapped(front: &mut FrontEnd) -> bool {
    front.config_word(36) & STATE_BAR_MAPPED != 0
}

/// A started front end that has been asked to map the BAR and does not reply.
fn without_reply<'a>(backend: &Backend, options: &'a Connect) -> (FrontEnd, MutexGuard<'a, bool>) {
    let held = options.map_reply.lock().unwrap();
    let front = FrontEnd::connect_with(&backend.socket(), options);
    let window = front.window.clone().unwrap();
    let begin = std::time::Instant::now();
    while window.maps.lock().unwrap().is_empty() {
        assert!(begin.elapsed() < DEADLINE, "no request to map the BAR");
        std::thread::yield_now();
    }
    (front, held)
}

#[test]
fn a_completed_nop_implies_the_bar_is_mapped() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    let (response, written) = front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    assert_eq!(response.status(), Status::OK);
    assert_eq!(written, 16);
    assert_eq!(front.config_word(0), CONFIG_MAGIC);
    assert_eq!(front.config_word(36), STATE_BAR_MAPPED);
    let window = front.window.clone().unwrap();
    let maps = window.maps.lock().unwrap();
    let (map, file) = &maps[0];
    assert_eq!(maps.len(), 1);
    assert_eq!((map.shmid, map.len), (0, 1 << 20));
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
}

#[test]
fn without_shmem_the_device_has_no_bar() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect {
        shmem: false,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    let (response, _) = front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    assert_eq!(response.status(), Status::OK);
    assert_eq!(front.config_word(36) & STATE_BAR_MAPPED, 0);
    drop(front);
    let log = backend.end();
    assert_eq!(log.matches("does not map the BAR").count(), 1, "{log}");
}

#[test]
fn requests_wait_for_the_mapping_but_the_socket_is_served() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect::default();
    let held = options.map_reply.lock().unwrap();
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    front.submit(0, &Request::new(Operation::Nop, 0, 0, 0), 0);
    front.kick(0);
    // The socket is served while the reply is outstanding: this call returns.
    assert_eq!(front.config_word(36) & STATE_BAR_MAPPED, 0);
    assert_eq!(front.stop_ring(0), 0, "nothing may have been taken");
    front.resume();
    assert_eq!(front.rings[0].used_index(&front.guest), 0);
    drop(held);
    front.wait(0);
    assert_eq!(front.response(0).status(), Status::OK);
}

#[test]
fn the_bar_is_mapped_again_after_a_reset() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    for round in 1..=3 {
        let (response, _) = front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
        assert_eq!(response.status(), Status::OK);
        let window = front.window.clone().unwrap();
        assert_eq!(window.maps.lock().unwrap().len(), round);
        front.reset();
        assert_eq!(front.config_word(36) & STATE_BAR_MAPPED, 0);
        front.start();
    }
}

#[test]
fn a_refused_mapping_leaves_the_device_without_a_bar() {
    let backend = Backend::start(&[]);
    let options = Connect::default();
    *options.map_reply.lock().unwrap() = false;
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    let (response, _) = front.call(0, &Request::new(Operation::Nop, 0, 0, 0));
    assert_eq!(response.status(), Status::OK);
    assert_eq!(front.config_word(36) & STATE_BAR_MAPPED, 0);
}

/// The driver is reset while the reply about the BAR is outstanding. QEMU replies later, and then
/// has a mapping that no reset removes.
#[test]
fn a_mapping_reply_after_a_reset_is_stale() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect::default();
    let (mut front, held) = without_reply(&backend, &options);
    front.reset();
    front.start();
    drop(held);
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    assert!(is_mapped(&mut front));
    assert_eq!(front.window.as_ref().unwrap().maps.lock().unwrap().len(), 2);
    front.reset();
    assert!(!is_mapped(&mut front));
    front.start();
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    assert!(is_mapped(&mut front));
}

#[test]
fn a_mapping_reply_without_a_driver_is_stale() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect::default();
    let (mut front, held) = without_reply(&backend, &options);
    front.reset();
    drop(held);
    for _ in 0..100 {
        assert!(!is_mapped(&mut front));
    }
    front.start();
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    assert!(is_mapped(&mut front));
}

/// The next driver does not use the BAR and need not wait for it.
#[test]
fn a_driver_without_bar_does_not_wait_for_an_earlier_reply() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect::default();
    let (mut front, held) = without_reply(&backend, &options);
    front.reset();
    front.options.features = FEATURES & !(1 << FEATURE_BAR);
    front.start();
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    drop(held);
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    assert!(!is_mapped(&mut front));
}

#[test]
fn a_paused_vm_keeps_its_bar() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    for _ in 0..3 {
        assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
        assert!(is_mapped(&mut front));
        front.pause();
        front.resume();
    }
    drop(front);
    let log = backend.end();
    assert!(!log.contains("does not map"), "{log}");
}

/// A refusal by a front end that has disconnected is not logged.
#[test]
fn a_mapping_reply_after_disconnect_is_ignored() {
    let backend = Backend::start(&["--memory-size", "1M"]);
    let options = Connect::default();
    let (front, mut held) = without_reply(&backend, &options);
    drop(front);
    let mut next = FrontEnd::connect(&backend.socket());
    assert_eq!(next.call(0, &nop()).0.status(), Status::OK);
    *held = false;
    drop(held);
    let begin = std::time::Instant::now();
    let waiting = || {
        backend
            .thread_names()
            .iter()
            .filter(|name| *name == "bar")
            .count()
    };
    while waiting() > 1 {
        assert!(begin.elapsed() < DEADLINE, "the reply was not handled");
        std::thread::yield_now();
    }
    let log = backend.end();
    assert!(!log.contains("does not map"), "{log}");
}
