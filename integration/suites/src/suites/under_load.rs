//! Removal of the device while every kind of object is in use.

use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, mm::MapFlags, process::Signal};
use vdma::{MapMode, Operation, protocol::Command};

use crate::support::{
    KIB, MIB, PAGE,
    batch::Batch,
    bytes,
    child::Child,
    driver::Unbound,
    errno, open,
    region::Region,
    uring::{self, Uring},
};

/// A queue for a thousand requests, which stay in flight for some seconds.
const DEEP_AND_SLOW: &[&str] = &["--queue-size=1024", "--fault=delay=5s,range=16M+1M"];

const SLOW: u64 = 16 << 20;

#[guest_test(device_arguments = DEEP_AND_SLOW, timeout = 120)]
fn removal_with_everything_in_use() -> Result<()> {
    const READS: Batch = Batch::consecutive(1000, KIB, SLOW);
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

    let target = Region::anonymous(READS.total())?;
    let mut ring = Uring::new(2048)?;
    let mut requests = READS.reads(&device, &target);
    let mut command = Command {
        operation: Operation::Read.code(),
        flags: vdma::protocol::COMMAND_INCOMING_BUFFER,
        incoming_buffer: registered.id(),
        offset: SLOW,
        length: 10 * PAGE as u64,
        ..Command::default()
    };
    requests.push(uring::command(&device, &mut command));
    // SAFETY: Region, buffer and command live until all requests have completed, below.
    unsafe { ring.submit(&requests) }?;
    let in_flight = device.file_statistics()?.in_flight;
    ensure!(in_flight == READS.count as u64 + 1, "{in_flight} in flight");

    let unbound = Unbound::new()?;
    // The device has not had the time to complete any of them.
    ring.wait_for_error(READS.count + 1, Errno::NODEV)?;
    ring.expect_none()?;
    for region in [&eager, &lazy] {
        Child::fork(|| region.write(0, &[2]))?.die_of(Signal::BUS)?;
    }
    // Memory that is not the device's stays.
    ensure!(allocated.load::<u16>(0)? == 0x5555, "the allocated buffer");
    errno::expect_vdma(device.nop(), Errno::NODEV, "an operation")?;
    errno::expect_vdma(
        device.read(0, allocated.target(None)),
        Errno::NODEV,
        "a read into a buffer",
    )?;
    ensure!(trace.read()?.records.len() + 1 >= READS.count, "the trace");
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
