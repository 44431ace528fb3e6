//! Bytes on the vhost-user socket: whole messages with arbitrary contents, and arbitrary bytes.
//!
//! Run it with `ASAN_OPTIONS=detect_leaks=0` and `-detect_leaks=0`: the server keeps running, and a
//! thread that is just being started looks like a leak.
#![no_main]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vhost_device_dma::{
    memory::{Backing, DeviceMemory},
    sandbox::SeccompMode,
    vhost_user::{Device, DeviceSettings, Server, SocketListener},
};

#[derive(Arbitrary, Debug)]
enum Step {
    /// A request with a valid header.
    Message {
        request: u8,
        flags: u8,
        body: Vec<u8>,
    },
    /// One of the fixed-size requests about a ring.
    Ring {
        request: u8,
        index: u8,
        value: u32,
    },
    Features(u64),
    Bytes(Vec<u8>),
}

/// The server lives as long as the process; each input is a new front end.
fn socket() -> &'static PathBuf {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    SOCKET.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap().keep();
        let path = directory.join("socket");
        let settings = DeviceSettings {
            // One thread with two queues, and one with one.
            num_queues: 3,
            queue_size: 64,
            threads: 2,
            once: false,
            scrub: false,
            access_platform: true,
            poll: Duration::ZERO,
            seccomp: SeccompMode::None,
            faults: Vec::new(),
        };
        let memory = DeviceMemory::open(Backing::Memfd, Some(1 << 16)).unwrap();
        let device = Device::new("fuzz".to_owned(), settings, Arc::new(memory));
        let listener = SocketListener::bind(&path).unwrap();
        let server = Server::start(Arc::new(device), listener, || std::process::abort()).unwrap();
        std::mem::forget(server);
        path
    })
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap();
    let mut bytes: Vec<u8> = [request, flags, size]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    bytes.extend(body);
    bytes
}

fuzz_target!(|steps: Vec<Step>| {
    let mut stream = UnixStream::connect(socket()).unwrap();
    stream.set_nonblocking(true).unwrap();
    for step in steps {
        let bytes = match step {
            Step::Message {
                request,
                flags,
                body,
            } => message(
                (request % 50).into(),
                u32::from(flags) << 2 & 0xc | 1,
                &body,
            ),
            Step::Ring {
                request,
                index,
                value,
            } => {
                let body = [u32::from(index % 4).to_le_bytes(), value.to_le_bytes()].concat();
                message([8, 10, 11, 18][usize::from(request) % 4], 1, &body)
            }
            Step::Features(features) => message(2, 1, &features.to_le_bytes()),
            Step::Bytes(bytes) => bytes,
        };
        // The backend may have closed the connection already.
        if stream.write_all(&bytes).is_err() {
            break;
        }
        let _ = stream.read(&mut [0; 4096]);
    }
    // The backend has to serve the next front end whatever state this one leaves.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    stream.set_nonblocking(false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut rest = [0; 4096];
    while matches!(stream.read(&mut rest), Ok(count) if count > 0) {}
});
