//! Synchronous writes: a FLUSH covers each before it completes.

use std::{
    io::IoSlice,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, ReadWriteFlags, pwritev2},
};
use vdma::{Device, Operation};

use crate::support::{
    MIB, PAGE,
    aio::{Context, Iocb, Opcode},
    batch::Batch,
    bytes,
    completion::{Completion, Expected},
    driver::Unbound,
    open, open_direct, open_with_flags,
    region::Region,
    uring::{self, Request, Uring, fd},
    wait,
};

/// A device that fails every FLUSH.
const FLUSH_FAILS: &[&str] = &["--fault=fail=io-error,op=flush"];

/// A queue that is soon full.
const SHALLOW: &[&str] = &["--queue-size=16"];

/// A FLUSH takes a while.
const SLOW_FLUSH: &[&str] = &["--queue-size=16", "--fault=delay=100ms,op=flush"];

/// Offset of the writes.
const OFFSET: u64 = 12_345;

/// A way of writing a whole region so that it is durable afterwards. Returns the bytes, or the
/// negative error number.
type Way = fn(&Region) -> Result<i64>;

/// The ways there are.
const WAYS: [(&str, Way); 10] = [
    ("O_DSYNC", |region| plain(libc::O_DSYNC, region)),
    ("O_SYNC", |region| plain(libc::O_SYNC, region)),
    ("RWF_DSYNC", |region| call(ReadWriteFlags::DSYNC, region)),
    ("RWF_SYNC", |region| call(ReadWriteFlags::SYNC, region)),
    ("libaio, O_DSYNC", |region| libaio(libc::O_DSYNC, 0, region)),
    ("libaio, RWF_DSYNC", |region| {
        libaio(0, libc::RWF_DSYNC, region)
    }),
    ("io_uring, O_SYNC", |region| {
        io_uring(Uring::new(1)?, &open_with_flags(libc::O_SYNC)?, 0, region)
    }),
    ("io_uring, RWF_DSYNC", |region| {
        io_uring(Uring::new(1)?, &open()?, libc::RWF_DSYNC, region)
    }),
    ("io_uring, RWF_SYNC", |region| {
        io_uring(Uring::new(1)?, &open()?, libc::RWF_SYNC, region)
    }),
    ("io_uring, IOPOLL, RWF_DSYNC", |region| {
        io_uring(
            Uring::with_iopoll(1)?,
            &open_direct()?,
            libc::RWF_DSYNC,
            region,
        )
    }),
];

/// What a system call has returned, as a completion has it.
fn returned<E: Into<std::io::Error>>(result: Result<usize, E>) -> Result<i64> {
    match result.map_err(Into::into) {
        Ok(bytes) => Ok(i64::try_from(bytes)?),
        Err(error) => Ok(-i64::from(error.raw_os_error().context("no error number")?)),
    }
}

fn plain(flags: libc::c_int, region: &Region) -> Result<i64> {
    let device = open_with_flags(flags)?;
    returned(region.pwrite(device.file(), 0..region.len(), OFFSET)?)
}

fn call(flags: ReadWriteFlags, region: &Region) -> Result<i64> {
    let data = region.read(0..region.len())?;
    returned(pwritev2(
        open()?.file(),
        &[IoSlice::new(&data)],
        OFFSET,
        flags,
    ))
}

/// The result of the one completion.
fn only(completions: &[Completion]) -> Result<i64> {
    ensure!(completions.len() == 1, "{completions:?}");
    Ok(completions[0].result)
}

fn libaio(file_flags: libc::c_int, call_flags: libc::c_int, region: &Region) -> Result<i64> {
    let device = open_with_flags(file_flags)?;
    let mut context = Context::new(1)?;
    let range = 0..region.len();
    let write = Iocb::transfer(Opcode::Write, device.file(), region, range, OFFSET, 0)?;
    // SAFETY: The region lives until the request has completed, below.
    unsafe { context.submit_all(&mut [write.call_flags(call_flags)]) }?;
    only(&context.wait_raw(1)?)
}

fn io_uring(mut ring: Uring, device: &Device, flags: libc::c_int, region: &Region) -> Result<i64> {
    let length = u32::try_from(region.len())?;
    let write = opcode::Write::new(fd(device.file()), region.at(0), length)
        .offset(OFFSET)
        .rw_flags(flags)
        .build();
    // SAFETY: The region lives until the request has completed, below.
    unsafe { ring.submit(&[Request::new(write, Expected::Bytes(region.len()))]) }?;
    only(&ring.wait_raw(1)?)
}

/// A write is one request or several; the FLUSH is submitted when all of them have completed.
#[guest_test]
fn a_flush_follows_each_synchronous_write() -> Result<()> {
    let device = open()?;
    for length in [1, PAGE, 5 * MIB] {
        let region = Region::anonymous(length)?;
        for (seed, (way, write)) in (0..).zip(WAYS) {
            let data = bytes::random(seed, length);
            region.write(0, &data)?;
            let mut trace = device.trace()?;
            let result = write(&region).context(way)?;
            ensure!(usize::try_from(result) == Ok(length), "{way}: {result}");
            let records = trace.read()?.records;
            let (flush, writes) = records.split_last().context("no requests")?;
            ensure!(
                flush.operation == Operation::Flush.code() && !writes.is_empty(),
                "{way}, {length} bytes: {records:?}"
            );
            for write in writes {
                ensure!(
                    write.operation == Operation::Write.code()
                        && write.time <= flush.time - flush.latency,
                    "{way}: {write:?} and {flush:?}"
                );
            }
            bytes::expect_at(device.file(), OFFSET, &data, way)?;
        }
    }
    Ok(())
}

#[guest_test]
fn no_flush_follows_other_calls() -> Result<()> {
    let (device, synchronous) = (open()?, open_with_flags(libc::O_SYNC)?);
    let mut trace = device.trace()?;
    device.file().write_all_at(&[1; 100], 0)?;
    synchronous.file().read_exact_at(&mut [0; 100], 0)?;
    ensure!(synchronous.file().write_at(&[], 0)? == 0, "an empty write");
    let records = trace.read()?.records;
    let flush = Operation::Flush.code();
    ensure!(
        records.len() == 2 && records.iter().all(|record| record.operation != flush),
        "{records:?}"
    );
    Ok(())
}

/// A write completes with the failure of its FLUSH, and so not before it.
#[guest_test(device_arguments = FLUSH_FAILS)]
fn a_failed_flush_fails_the_synchronous_write() -> Result<()> {
    let region = Region::anonymous(3 * MIB)?;
    for (way, write) in WAYS {
        let result = write(&region).context(way)?;
        let expected = -i64::from(Errno::IO.raw_os_error());
        ensure!(result == expected, "{way}: {result}");
    }
    open()?.file().write_all_at(&[1; 100], 0)?;
    Ok(())
}

/// More writes, and so more FLUSHes, than the queue has descriptors.
#[guest_test(device_arguments = SHALLOW)]
fn synchronous_writes_beyond_the_depth_of_the_queue() -> Result<()> {
    let device = open_with_flags(libc::O_DSYNC)?;
    let batch = Batch::consecutive(200, 777, OFFSET);
    let data = bytes::random(7, batch.total());
    let region = Region::anonymous(batch.total())?;
    region.write(0, &data)?;
    let mut ring = Uring::new(256)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.writes(&device, &region)) }?;
    ring.wait(batch.count)?;
    let mut context = Context::new(u32::try_from(batch.count)?)?;
    let mut iocbs = batch.iocbs(Opcode::Write, &device, &region)?;
    let mut taken = 0;
    while taken < iocbs.len() {
        // SAFETY: The region lives until all requests have completed, below.
        taken += unsafe { context.submit(&mut iocbs[taken..]) }?;
    }
    context.wait(batch.count)?;
    let submitted = device.file_statistics()?.submitted;
    let expected = 4 * batch.count as u64;
    ensure!(submitted == expected, "{submitted} requests");
    bytes::expect_at(device.file(), OFFSET, &data, "what was written")
}

/// Writes whose FLUSH has not completed, or waits for free descriptors, when the device goes.
#[guest_test(device_arguments = SLOW_FLUSH)]
fn removal_ends_synchronous_writes() -> Result<()> {
    let device = open_with_flags(libc::O_DSYNC)?;
    let region = Region::anonymous(64 * PAGE)?;
    let mut ring = Uring::new(64)?;
    let writes: Vec<_> = (0..64)
        .map(|page| uring::write(device.file(), &region, page * PAGE..(page + 1) * PAGE, 0))
        .collect();
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&writes) }?;
    let unbound = Unbound::new()?;
    let gone = ring.wait_raw(writes.len())?;
    let expected = [Errno::NODEV, Errno::IO];
    ensure!(
        gone.iter().all(|completion| completion.is_bytes(PAGE)
            || expected.iter().any(|error| completion.is_error(*error))),
        "{gone:?}"
    );
    ensure!(
        gone.iter()
            .any(|completion| completion.is_error(Errno::NODEV)),
        "none was in flight: {gone:?}"
    );
    unbound.bind()
}

/// The eventfd of a file counts an asynchronous write once, when its FLUSH has completed.
#[guest_test]
fn an_asynchronous_synchronous_write_is_one_event() -> Result<()> {
    let device = open_with_flags(libc::O_DSYNC)?;
    let event = eventfd(0, EventfdFlags::NONBLOCK)?;
    device.set_event(Some(event.as_fd()))?;
    let region = Region::anonymous(PAGE)?;
    let mut ring = Uring::new(1)?;
    // SAFETY: The region lives until the request has completed.
    unsafe { ring.run(&[uring::write(device.file(), &region, 0..PAGE, 0)]) }?;
    let mut count = [0; 8];
    wait::until("the event", || {
        Ok(rustix::io::read(&event, &mut count) == Ok(count.len()))
    })?;
    ensure!(u64::from_ne_bytes(count) == 1, "{count:?}");
    device.nop()?;
    ensure!(
        rustix::io::read(&event, &mut count) == Ok(8) && u64::from_ne_bytes(count) == 1,
        "{count:?} after a NOP"
    );
    Ok(())
}
