//! Everything at once: removal, sleep and faults find every kind of thing in use.

use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::{io::Errno, mm::MapFlags, process::Signal};
use vdma::{
    MapMode, Operation,
    protocol::{Command, URING_RUN},
};

use crate::support::{
    KIB, MIB, PAGE, bytes,
    child::Child,
    driver::Unbound,
    errno, open,
    region::Region,
    uring::{Uring, fd},
};

/// A queue for a thousand, and requests that stay for some seconds.
const CROWDED: &[&str] = &["--queue-size=1024", "--fault=delay=5s,range=16M+1M"];

const SLOW: u64 = 16 << 20;

#[guest_test(device_arguments = CROWDED, timeout = 120)]
fn removal_with_everything_in_use() -> Result<()> {
    const READS: usize = 1000;
    let device = open()?;
    ensure!(device.info().queue_size == 1024, "{:?}", device.info());
    let eager = Region::file(device.file(), 0, MIB, MapFlags::SHARED)?;
    device.set_map_mode(MapMode::Lazy)?;
    let lazy = Region::file(device.file(), 0, 4 * MIB, MapFlags::SHARED)?;
    lazy.write(0, &[1])?;
    let mut memory = vec![0; 10 * PAGE];
    let registered = device.register(&mut memory)?;
    let allocated = device.allocate(10 * PAGE)?;
    allocated.store(0, 0x5555_u16)?;
    let mut trace = device.trace()?;

    let target = Region::anonymous(READS * KIB)?;
    let mut ring = Uring::new(2048)?;
    let mut entries: Vec<_> = (0..READS)
        .map(|index| {
            let offset = SLOW + (index * KIB) as u64 % (1 << 20);
            opcode::Read::new(fd(device.file()), target.at(index * KIB), 1024)
                .offset(offset)
                .build()
        })
        .collect();
    let mut command = Command {
        operation: Operation::Read.code(),
        flags: vdma::protocol::COMMAND_INCOMING_BUFFER,
        incoming_buffer: registered.id(),
        offset: SLOW,
        length: 10 * PAGE as u64,
        ..Command::default()
    };
    entries.push(
        opcode::UringCmd16::new(fd(device.file()), URING_RUN)
            .addr(Some(&raw mut command as u64))
            .build(),
    );
    // SAFETY: Region, buffer and command live until all has completed, below.
    unsafe { ring.submit(&entries) }?;
    let in_flight = device.file_statistics()?.in_flight;
    ensure!(in_flight == READS as u64 + 1, "{in_flight} in flight");

    let unbound = Unbound::new()?;
    for completion in ring.wait(READS + 1)? {
        ensure!(
            completion.result == -Errno::NODEV.raw_os_error(),
            "{completion:?}, though nothing can be done yet"
        );
    }
    ring.expect_none()?;
    for region in [&eager, &lazy] {
        Child::fork(|| region.write(0, &[2]))?.die_of(Signal::BUS)?;
    }
    // What is not the device's stays.
    ensure!(allocated.load::<u16>(0)? == 0x5555, "the allocated buffer");
    errno::expect_vdma(device.nop(), Errno::NODEV, "an operation")?;
    errno::expect_vdma(
        device.read(0, allocated.target(None)),
        Errno::NODEV,
        "a read into a buffer",
    )?;
    ensure!(trace.read()?.records.len() + 1 >= READS, "the trace");
    drop(registered);
    drop(allocated);

    unbound.bind()?;
    let data = bytes::random(1, 3 * PAGE);
    let again = open()?;
    again.file().write_all_at(&data, 77)?;
    let buffer = again.allocate(3 * PAGE)?;
    again.read(77, buffer.target(None))?;
    let mut back = vec![0; data.len()];
    buffer.read(0, &mut back)?;
    bytes::expect(&back, &data, "what was read afterwards")
}
