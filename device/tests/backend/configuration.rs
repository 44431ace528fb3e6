//! The configuration space, and what changes it.

use vdma_protocol::{
    CONFIG_MAGIC, CONFIG_VERSION, Config, Operation, STATE_BAR_MAPPED, STATE_PERSISTENT, Status,
};
use vhost::vhost_user::{VhostUserFrontend, message::VhostUserConfigFlags};

use crate::support::{Backend, Connect, FEATURES, FrontEnd, Request};

fn nop() -> Request {
    Request::new(Operation::Nop, 0, 0, 0)
}

#[test]
fn fields_describe_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("memory");
    let file = format!("--memory-file={}", file.display());
    let arguments = [
        "--memory-size=3M",
        "--num-queues=5",
        "--queue-size=64",
        &file,
    ];
    let backend = Backend::start_in(directory, &arguments);
    let options = Connect {
        num_queues: 5,
        queue_size: 64,
        ..Connect::default()
    };
    let mut front = FrontEnd::connect_with(&backend.socket(), &options);
    assert_eq!(front.call(4, &nop()).0.status(), Status::OK);
    let config = Config::from_bytes(&front.config());
    assert_eq!(config.magic.get(), CONFIG_MAGIC);
    assert_eq!(config.version.get(), CONFIG_VERSION);
    assert_eq!(config.memory_size.get(), 3 << 20);
    assert_eq!(config.operations.get(), (1 << Operation::ALL.len()) - 1);
    assert_eq!(config.num_queues.get(), 5);
    assert_eq!((config.reserved0.get(), config.reserved1), (0, [0; 24]));
    assert_eq!(config.max_segments.get(), 1024);
    assert_eq!(config.max_transfer.get(), 1 << 30);
    assert_eq!(config.state.get(), STATE_BAR_MAPPED | STATE_PERSISTENT);
}

/// Drivers use their DMA API only if the device offers `VIRTIO_F_ACCESS_PLATFORM`.
#[test]
fn access_platform_is_offered_on_request() {
    const ACCESS_PLATFORM: u64 = 1 << 33;
    for (arguments, expected) in [
        (&["--memory-size=1M"][..], 0),
        (&["--memory-size=1M", "--access-platform"], ACCESS_PLATFORM),
    ] {
        let backend = Backend::start(arguments);
        let options = Connect {
            features: FEATURES | expected,
            ..Connect::default()
        };
        let mut front = FrontEnd::connect_with(&backend.socket(), &options);
        assert_eq!(front.offered & ACCESS_PLATFORM, expected);
        assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    }
}

/// Any guest can write there: the connection has to survive that.
#[test]
fn writes_are_ignored() {
    let backend = Backend::start(&["--memory-size=1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    let before = front.config();
    for offset in (0..60).chain(0..60).chain(0..60) {
        front
            .frontend
            .set_config(offset, VhostUserConfigFlags::WRITABLE, &[0xff; 4])
            .unwrap();
    }
    assert_eq!(front.config(), before);
    assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
    drop(front);
    let log = backend.end();
    let lines = log.matches("configuration space").count();
    assert!((1..=20).contains(&lines), "{log}");
}

/// `VHOST_USER_RESET_DEVICE` stops all rings and removes the BAR mapping.
#[test]
fn reset_device_stops_the_rings() {
    let backend = Backend::start(&["--memory-size=1M"]);
    let mut front = FrontEnd::connect(&backend.socket());
    for _ in 0..3 {
        assert_eq!(front.call(0, &nop()).0.status(), Status::OK);
        assert_ne!(front.config_word(36) & STATE_BAR_MAPPED, 0);
        let served = front.rings[0].used_index(&front.guest);
        front.frontend.reset_device().unwrap();
        assert_eq!(front.config_word(36) & STATE_BAR_MAPPED, 0);
        front.submit(0, &nop(), 0);
        front.kick(0);
        assert_eq!(front.config_word(36) & STATE_BAR_MAPPED, 0);
        assert_eq!(front.rings[0].used_index(&front.guest), served);
        front.reset();
        front.start();
    }
}
