//! io_uring: requests of every kind and their completions.

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::{opcode, squeue::Flags};
use rustix::io::Errno;

use super::{overwrite, results_in_order};
use crate::support::{
    KIB, MIB, PAGE,
    batch::Batch,
    bytes,
    completion::Expected,
    open, procfs,
    region::Region,
    uring::{self, Request, Uring, fd},
};

/// Writes with one kind of requests, reads back with another, and compares.
fn uring_round_trip(
    ring: &mut Uring,
    batch: Batch,
    (source, writes): (&Region, &[Request]),
    (target, reads): (&Region, &[Request]),
) -> Result<()> {
    let data = bytes::random(batch.offset, batch.total());
    source.write(0, &data)?;
    overwrite(&open()?, &batch)?;
    for requests in [writes, reads] {
        // SAFETY: The callers' regions outlive this call, which waits for every request.
        unsafe { ring.run(requests) }?;
        ring.expect_none()?;
    }
    bytes::expect(&target.read(0..batch.total())?, &data, "what was read back")
}

/// [`uring_round_trip`] with plain reads and writes.
fn plain_round_trip(ring: &mut Uring, batch: Batch) -> Result<()> {
    let device = open()?;
    let source = Region::anonymous(batch.total())?;
    let target = Region::anonymous(batch.total())?;
    let writes = batch.writes(&device, &source);
    let reads = batch.reads(&device, &target);
    uring_round_trip(ring, batch, (&source, &writes), (&target, &reads))
}

#[guest_test]
fn uring_reads_and_writes() -> Result<()> {
    let mut ring = Uring::new(128)?;
    for (count, length, offset) in [
        (128, 4096, 0),
        (64, 65_536, 4095),
        (128, 1, 1),
        (100, 7777, 99),
    ] {
        plain_round_trip(&mut ring, Batch::consecutive(count, length, offset))
            .with_context(|| format!("{count} of {length} bytes"))?;
    }
    Ok(())
}

#[guest_test]
fn uring_vectors() -> Result<()> {
    const SEGMENTS: usize = 5;
    const SEGMENT: usize = 1111;
    let device = open()?;
    let mut ring = Uring::new(64)?;
    let batch = Batch::consecutive(64, SEGMENTS * SEGMENT, 31);
    let source = Region::anonymous(batch.total())?;
    let target = Region::anonymous(batch.total())?;
    let vectors = |region: &Region| -> Vec<libc::iovec> {
        (0..batch.count * SEGMENTS)
            .map(|index| libc::iovec {
                iov_base: region.at(index * SEGMENT).cast(),
                iov_len: SEGMENT,
            })
            .collect()
    };
    let (from, to) = (vectors(&source), vectors(&target));
    let segments = u32::try_from(SEGMENTS)?;
    let file = fd(device.file());
    let whole = Expected::Bytes(batch.length);
    let first = |vectors: &[libc::iovec], start: usize| vectors[start / SEGMENT..].as_ptr();
    let writes = batch.requests(|range, offset| {
        let entry = opcode::Writev::new(file, first(&from, range.start), segments).offset(offset);
        Request::new(entry.build(), whole)
    });
    let reads = batch.requests(|range, offset| {
        let entry = opcode::Readv::new(file, first(&to, range.start), segments).offset(offset);
        Request::new(entry.build(), whole)
    });
    uring_round_trip(&mut ring, batch, (&source, &writes), (&target, &reads))
}

#[guest_test]
fn uring_registered_buffers() -> Result<()> {
    let device = open()?;
    let file = fd(device.file());
    for (count, length, offset) in [(128, 4096, 0), (64, 10_001, 4095), (16, 60_000, 3)] {
        let batch = Batch::consecutive(count, length, offset);
        let source = Region::anonymous(batch.total())?;
        let target = Region::anonymous(batch.total())?;
        let mut ring = Uring::new(128)?;
        let iovec = |region: &Region| libc::iovec {
            iov_base: region.at(0).cast(),
            iov_len: region.len(),
        };
        // SAFETY: The regions are dropped after the ring, which is declared behind them.
        unsafe { ring.register(&[iovec(&source), iovec(&target)]) }?;
        let (whole, bytes) = (Expected::Bytes(length), u32::try_from(length)?);
        let writes = batch.requests(|range, offset| {
            let entry = opcode::WriteFixed::new(file, source.at(range.start), bytes, 0);
            Request::new(entry.offset(offset).build(), whole)
        });
        let reads = batch.requests(|range, offset| {
            let entry = opcode::ReadFixed::new(file, target.at(range.start), bytes, 1);
            Request::new(entry.offset(offset).build(), whole)
        });
        uring_round_trip(&mut ring, batch, (&source, &writes), (&target, &reads))
            .with_context(|| format!("{count} of {length} bytes"))?;
    }
    Ok(())
}

#[guest_test]
fn uring_beyond_the_depth_of_the_queue() -> Result<()> {
    plain_round_trip(&mut Uring::new(1024)?, Batch::consecutive(1024, 513, 7))
}

#[guest_test]
fn uring_links_keep_their_order() -> Result<()> {
    let device = open()?;
    let mut ring = Uring::new(8)?;
    let source = Region::anonymous(PAGE)?;
    let target = Region::anonymous(PAGE)?;
    for round in 0..50 {
        let data = bytes::random(round, PAGE);
        source.write(0, &data)?;
        let sync = opcode::Fsync::new(fd(device.file())).build();
        let requests = [
            uring::write(device.file(), &source, 0..PAGE, 5).flags(Flags::IO_LINK),
            Request::new(sync, Expected::Bytes(0)).flags(Flags::IO_LINK),
            uring::read(device.file(), &target, 0..PAGE, 5),
        ];
        // SAFETY: The regions live until all requests have completed.
        unsafe { ring.run(&requests) }?;
        bytes::expect(&target.read(0..PAGE)?, &data, "what the link wrote")?;
    }
    Ok(())
}

#[guest_test]
fn uring_with_sqpoll() -> Result<()> {
    plain_round_trip(
        &mut Uring::with_sqpoll(64)?,
        Batch::consecutive(64, 9000, 8),
    )
}

#[guest_test]
fn uring_reports_errors_as_completions() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut ring = Uring::new(8)?;
    let region = Region::anonymous(2 * PAGE)?;
    region.protect_range(PAGE..2 * PAGE, rustix::mm::MprotectFlags::empty())?;
    let read = |start, offset| uring::read(device.file(), &region, start..start + 100, offset);
    let write = |start, offset| uring::write(device.file(), &region, start..start + 100, offset);
    let requests = [
        read(PAGE, 0).user_data(0),
        write(PAGE, 0).user_data(1),
        write(0, size).user_data(2),
        read(0, size).user_data(3),
        read(0, size - 60).user_data(4),
    ];
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&requests) }?;
    let results = results_in_order(ring.wait_raw(requests.len())?);
    let fault = -i64::from(Errno::FAULT.raw_os_error());
    let no_space = -i64::from(Errno::NOSPC.raw_os_error());
    ensure!(results == [fault, fault, no_space, 0, 60], "{results:?}");
    Ok(())
}

#[guest_test]
fn uring_needs_no_worker_threads() -> Result<()> {
    let mut ring = Uring::new(128)?;
    for length in [1, 4096, 128 * KIB] {
        plain_round_trip(&mut ring, Batch::consecutive(128, length, 3))?;
        let workers = procfs::io_workers()?;
        ensure!(
            workers.is_empty(),
            "{length} bytes need workers: {workers:?}"
        );
    }
    // More pages than one request has segments for, in pages that are not huge ones.
    plain_round_trip(&mut ring, Batch::consecutive(4, 2 * MIB, 3))?;
    let workers = procfs::io_workers()?;
    ensure!(workers.is_empty(), "long ones need workers: {workers:?}");
    // A request that asks for a worker gets one, which shows that the test would notice it.
    let device = open()?;
    let region = Region::anonymous(PAGE)?;
    let read = uring::read(device.file(), &region, 0..PAGE, 0).flags(Flags::ASYNC);
    // SAFETY: The region lives until the request has completed.
    unsafe { ring.run(&[read]) }?;
    ensure!(
        !procfs::io_workers()?.is_empty(),
        "the test does not see workers"
    );
    Ok(())
}

#[guest_test]
fn completions_are_never_lost() -> Result<()> {
    const DEPTH: usize = 96;
    const ROUNDS: usize = 40;
    let device = open()?;
    let mut ring = Uring::new(128)?;
    let region = Region::anonymous(DEPTH * 512)?;
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..ROUNDS {
        // Bursts of every size: the completion of the last request of a burst has no later one that
        // would make up for a missing interrupt.
        let burst = Batch::consecutive(random.usize(1..=DEPTH), 512, 0);
        let requests = if random.bool() {
            burst.reads(&device, &region)
        } else {
            burst.writes(&device, &region)
        };
        // SAFETY: The region lives until all requests have completed.
        unsafe { ring.run(&requests) }.with_context(|| format!("round {round}"))?;
    }
    ring.expect_none()?;
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.submitted == statistics.completed,
        "{statistics:?}"
    );
    ensure!(statistics.failed == 0, "{statistics:?}");
    Ok(())
}
