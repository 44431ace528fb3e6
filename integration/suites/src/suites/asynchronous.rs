//! libaio and io_uring: queued in the caller's context, completed once, never lost.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::{
    opcode,
    squeue::{Entry, Flags},
};
use rustix::io::Errno;
use vdma::Device;

use crate::support::{
    KIB, MIB, PAGE,
    aio::{Context, Iocb, Opcode},
    bytes,
    faults::{self, SLUGGISH},
    open,
    pieces::Pieces,
    procfs,
    region::Region,
    uring::{Uring, fd},
};

/// Device memory gets something else than what a test is going to write there.
fn spoil(device: &Device, pieces: &Pieces) -> Result<()> {
    let bytes = vec![0x5a; pieces.total()];
    device
        .file()
        .write_all_at(&bytes, pieces.position)
        .context("cannot prepare device memory")
}

fn by_libaio(pieces: Pieces, depth: u32) -> Result<()> {
    let device = open()?;
    let context = Context::new(depth)?;
    let data = bytes::random(pieces.length as u64, pieces.total());
    let source = Region::anonymous(pieces.total())?;
    let target = Region::anonymous(pieces.total())?;
    source.write(0, &data)?;
    spoil(&device, &pieces)?;
    for (opcode, region) in [(Opcode::Write, &source), (Opcode::Read, &target)] {
        let mut iocbs = pieces.iocbs(opcode, &device, region)?;
        let mut taken = 0;
        while taken < iocbs.len() {
            // SAFETY: The regions live until all has completed, below.
            taken += unsafe { context.submit(&mut iocbs[taken..]) }.context("io_submit")?;
        }
        let events = context.wait(pieces.count)?;
        pieces.check(events.iter().map(|event| (event.data, event.result)))?;
        ensure!(context.ready()? == 0, "more completions than requests");
    }
    bytes::expect(&target.read(0..pieces.total())?, &data, "what came back")
}

#[guest_test]
fn libaio_moves_many_at_once() -> Result<()> {
    by_libaio(
        Pieces {
            count: 128,
            length: 5001,
            position: 12_345,
        },
        128,
    )
}

#[guest_test]
fn libaio_syncs() -> Result<()> {
    let device = open()?;
    let context = Context::new(4)?;
    let mut iocbs = [
        Iocb::new(Opcode::Sync, device.file(), 1),
        Iocb::new(Opcode::DataSync, device.file(), 2),
    ];
    // SAFETY: They have no buffers.
    let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    ensure!(taken == 2, "{taken} of 2 taken");
    for event in context.wait(2)? {
        ensure!(
            event.result == 0,
            "sync {} ended with {}",
            event.data,
            event.result
        );
    }
    device.file().sync_all().context("fsync")?;
    device.file().sync_data().context("fdatasync")
}

#[guest_test]
fn libaio_reports_errors_as_completions() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let context = Context::new(4)?;
    let region = Region::anonymous(2 * PAGE)?;
    region.protect_range(PAGE..2 * PAGE, rustix::mm::MprotectFlags::empty())?;
    let iocb = |opcode, start, offset, data| {
        Iocb::transfer(opcode, device.file(), &region, start, 100, offset, data)
    };
    let mut iocbs = [
        iocb(Opcode::Read, PAGE, 0, 0)?,
        iocb(Opcode::Write, PAGE, 0, 1)?,
        iocb(Opcode::Write, 0, size, 2)?,
        iocb(Opcode::Read, 0, size, 3)?,
    ];
    // SAFETY: The region lives until all has completed, below.
    let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    ensure!(taken == iocbs.len(), "{taken} taken");
    let mut results: Vec<(u64, i64)> = context
        .wait(iocbs.len())?
        .iter()
        .map(|event| (event.data, event.result))
        .collect();
    results.sort_unstable();
    let fault = -i64::from(Errno::FAULT.raw_os_error());
    let no_space = -i64::from(Errno::NOSPC.raw_os_error());
    ensure!(
        results == [(0, fault), (1, fault), (2, no_space), (3, 0)],
        "{results:?}"
    );
    Ok(())
}

#[guest_test]
fn libaio_beyond_the_depth_of_the_queue() -> Result<()> {
    by_libaio(
        Pieces {
            count: 1000,
            length: 777,
            position: 1,
        },
        1000,
    )
}

/// The one that has to wait for room finds the ring empty: nobody else tells the device of it.
#[guest_test(device_arguments = &["--queue-size=16"])]
fn libaio_waits_for_free_descriptors_with_the_last_request() -> Result<()> {
    const COUNT: usize = 17;
    let device = open()?;
    let context = Context::new(32)?;
    let region = Region::anonymous(COUNT * PAGE)?;
    for round in 0..20 {
        let mut iocbs = Vec::new();
        for index in 0..COUNT {
            iocbs.push(Iocb::transfer(
                Opcode::Read,
                device.file(),
                &region,
                index * PAGE,
                PAGE,
                0,
                index as u64,
            )?);
        }
        // SAFETY: The region lives until all has completed, below.
        let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
        ensure!(taken == COUNT, "{taken} of {COUNT} taken");
        let events = context
            .wait(COUNT)
            .with_context(|| format!("round {round}"))?;
        for event in events {
            ensure!(event.result == PAGE as i64, "{event:?}");
        }
    }
    let statistics = device.file_statistics()?;
    ensure!(statistics.queue_full > 0, "none waited: {statistics:?}");
    Ok(())
}

/// Writes with one kind of entries, reads back with another, and compares.
fn by_uring(
    ring: &mut Uring,
    pieces: Pieces,
    source: &Region,
    target: &Region,
    writes: &[Entry],
    reads: &[Entry],
) -> Result<()> {
    let data = bytes::random(pieces.position, pieces.total());
    source.write(0, &data)?;
    spoil(&open()?, &pieces)?;
    for entries in [writes, reads] {
        // SAFETY: The callers' regions outlive this call, which waits for every request.
        unsafe { ring.submit(entries) }?;
        pieces.check_uring(&ring.wait(pieces.count)?)?;
        ring.expect_none()?;
    }
    bytes::expect(&target.read(0..pieces.total())?, &data, "what came back")
}

/// [`by_uring`] with plain reads and writes.
fn plain(ring: &mut Uring, pieces: Pieces) -> Result<()> {
    let device = open()?;
    let source = Region::anonymous(pieces.total())?;
    let target = Region::anonymous(pieces.total())?;
    let writes = pieces.writes(&device, &source);
    let reads = pieces.reads(&device, &target);
    by_uring(ring, pieces, &source, &target, &writes, &reads)
}

#[guest_test]
fn uring_reads_and_writes() -> Result<()> {
    let mut ring = Uring::new(128)?;
    for (count, length, position) in [
        (128, 4096, 0),
        (64, 65_536, 4095),
        (128, 1, 1),
        (100, 7777, 99),
    ] {
        let pieces = Pieces {
            count,
            length,
            position,
        };
        plain(&mut ring, pieces).with_context(|| format!("{count} of {length} bytes"))?;
    }
    Ok(())
}

#[guest_test]
fn uring_vectors() -> Result<()> {
    const SEGMENTS: usize = 5;
    const SEGMENT: usize = 1111;
    let device = open()?;
    let mut ring = Uring::new(64)?;
    let pieces = Pieces {
        count: 64,
        length: SEGMENTS * SEGMENT,
        position: 31,
    };
    let source = Region::anonymous(pieces.total())?;
    let target = Region::anonymous(pieces.total())?;
    let vectors = |region: &Region| -> Vec<libc::iovec> {
        (0..pieces.count * SEGMENTS)
            .map(|index| libc::iovec {
                iov_base: region.at(index * SEGMENT).cast(),
                iov_len: SEGMENT,
            })
            .collect()
    };
    let (from, to) = (vectors(&source), vectors(&target));
    let segments = u32::try_from(SEGMENTS)?;
    let first = |vectors: &[libc::iovec], start: usize| vectors[start / SEGMENT..].as_ptr();
    let writes = pieces.entries(|start, offset| {
        opcode::Writev::new(fd(device.file()), first(&from, start), segments)
            .offset(offset)
            .build()
    });
    let reads = pieces.entries(|start, offset| {
        opcode::Readv::new(fd(device.file()), first(&to, start), segments)
            .offset(offset)
            .build()
    });
    by_uring(&mut ring, pieces, &source, &target, &writes, &reads)
}

#[guest_test]
fn uring_registered_buffers() -> Result<()> {
    let device = open()?;
    for (count, length, position) in [(128, 4096, 0), (64, 10_001, 4095), (16, 60_000, 3)] {
        let pieces = Pieces {
            count,
            length,
            position,
        };
        let source = Region::anonymous(pieces.total())?;
        let target = Region::anonymous(pieces.total())?;
        let mut ring = Uring::new(128)?;
        let iovec = |region: &Region| libc::iovec {
            iov_base: region.at(0).cast(),
            iov_len: region.len(),
        };
        // SAFETY: The regions are dropped after the ring, which is declared behind them.
        unsafe { ring.register(&[iovec(&source), iovec(&target)]) }?;
        let length = pieces.length_u32();
        let writes = pieces.entries(|start, offset| {
            opcode::WriteFixed::new(fd(device.file()), source.at(start), length, 0)
                .offset(offset)
                .build()
        });
        let reads = pieces.entries(|start, offset| {
            opcode::ReadFixed::new(fd(device.file()), target.at(start), length, 1)
                .offset(offset)
                .build()
        });
        by_uring(&mut ring, pieces, &source, &target, &writes, &reads)
            .with_context(|| format!("{count} of {length} bytes"))?;
    }
    Ok(())
}

#[guest_test]
fn uring_beyond_the_depth_of_the_queue() -> Result<()> {
    let mut ring = Uring::new(1024)?;
    plain(
        &mut ring,
        Pieces {
            count: 1024,
            length: 513,
            position: 7,
        },
    )
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
        let length = u32::try_from(PAGE)?;
        let file = fd(device.file());
        let entries = [
            opcode::Write::new(file, source.at(0), length)
                .offset(5)
                .build()
                .flags(Flags::IO_LINK)
                .user_data(0),
            opcode::Fsync::new(file)
                .build()
                .flags(Flags::IO_LINK)
                .user_data(1),
            opcode::Read::new(file, target.at(0), length)
                .offset(5)
                .build()
                .user_data(2),
        ];
        // SAFETY: The regions live until all has completed, below.
        unsafe { ring.submit(&entries) }?;
        let mut completions = ring.wait(3)?;
        completions.sort_unstable();
        let results: Vec<i32> = completions.iter().map(|one| one.result).collect();
        ensure!(results == [4096, 0, 4096], "{results:?}");
        bytes::expect(&target.read(0..PAGE)?, &data, "what the link wrote")?;
    }
    Ok(())
}

#[guest_test]
fn uring_with_sqpoll() -> Result<()> {
    let mut ring = Uring::with_kernel_thread(64)?;
    plain(
        &mut ring,
        Pieces {
            count: 64,
            length: 9000,
            position: 8,
        },
    )
}

#[guest_test]
fn uring_reports_errors_as_completions() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut ring = Uring::new(8)?;
    let region = Region::anonymous(2 * PAGE)?;
    region.protect_range(PAGE..2 * PAGE, rustix::mm::MprotectFlags::empty())?;
    let file = fd(device.file());
    let read = |start, offset| {
        opcode::Read::new(file, region.at(start), 100)
            .offset(offset)
            .build()
    };
    let write = |start, offset| {
        opcode::Write::new(file, region.at(start), 100)
            .offset(offset)
            .build()
    };
    let entries = [
        read(PAGE, 0).user_data(0),
        write(PAGE, 0).user_data(1),
        write(0, size).user_data(2),
        read(0, size).user_data(3),
        read(0, size - 60).user_data(4),
    ];
    // SAFETY: The region lives until all has completed, below.
    unsafe { ring.submit(&entries) }?;
    let mut completions = ring.wait(entries.len())?;
    completions.sort_unstable();
    let results: Vec<i32> = completions.iter().map(|one| one.result).collect();
    let (fault, no_space) = (-Errno::FAULT.raw_os_error(), -Errno::NOSPC.raw_os_error());
    ensure!(results == [fault, fault, no_space, 0, 60], "{results:?}");
    Ok(())
}

#[guest_test]
fn uring_needs_no_worker_threads() -> Result<()> {
    let mut ring = Uring::new(128)?;
    for length in [1, 4096, 128 * KIB] {
        let pieces = Pieces {
            count: 128,
            length,
            position: 3,
        };
        plain(&mut ring, pieces)?;
        let workers = procfs::io_workers()?;
        ensure!(
            workers.is_empty(),
            "{length} bytes need workers: {workers:?}"
        );
    }
    // More pages than one request has entries for, in pages that are not huge ones.
    let scattered = Pieces {
        count: 4,
        length: 2 * MIB,
        position: 3,
    };
    plain(&mut ring, scattered)?;
    let workers = procfs::io_workers()?;
    ensure!(workers.is_empty(), "long ones need workers: {workers:?}");
    // A request that asks for a worker gets one, and this test sees it.
    let device = open()?;
    let region = Region::anonymous(PAGE)?;
    let entry = opcode::Read::new(fd(device.file()), region.at(0), 4096)
        .build()
        .flags(Flags::ASYNC);
    // SAFETY: The region lives until the request has completed, below.
    unsafe { ring.submit(&[entry]) }?;
    let completions = ring.wait(1)?;
    ensure!(completions[0].result == 4096, "{completions:?}");
    ensure!(
        !procfs::io_workers()?.is_empty(),
        "the test sees no workers at all"
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
    let pieces = Pieces {
        count: DEPTH,
        length: 512,
        position: 0,
    };
    let mut random = fastrand::Rng::with_seed(5);
    for round in 0..ROUNDS {
        // Bursts of every size: the last of a burst has nobody behind it to take it along.
        let burst = Pieces {
            count: random.usize(1..=pieces.count),
            ..pieces
        };
        let entries = if random.bool() {
            burst.reads(&device, &region)
        } else {
            burst.writes(&device, &region)
        };
        // SAFETY: The region lives until all has completed, below.
        unsafe { ring.submit(&entries) }?;
        let completions = ring
            .wait(burst.count)
            .with_context(|| format!("round {round}"))?;
        burst
            .check_uring(&completions)
            .with_context(|| format!("round {round}"))?;
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

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn submitting_does_not_block() -> Result<()> {
    let pieces = Pieces {
        count: 16,
        length: 4096,
        position: SLUGGISH.start,
    };
    let region = Region::anonymous(pieces.total())?;
    {
        let device = open()?;
        let mut ring = Uring::new(16)?;
        // SAFETY: The region lives until all has completed, below.
        unsafe { ring.submit(&pieces.reads(&device, &region)) }?;
        pieces.check_uring(&ring.wait(pieces.count)?)?;
        let most = device.file_statistics()?.in_flight_max;
        ensure!(
            most > 1,
            "io_uring: never more than {most} request(s) at once"
        );
    }
    let device = open()?;
    let context = Context::new(16)?;
    let mut iocbs = pieces.iocbs(Opcode::Read, &device, &region)?;
    // SAFETY: The region lives until all has completed, below.
    let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    ensure!(taken == pieces.count, "{taken} taken");
    context.wait(pieces.count)?;
    let most = device.file_statistics()?.in_flight_max;
    ensure!(
        most > 1,
        "libaio: never more than {most} request(s) at once"
    );
    Ok(())
}
