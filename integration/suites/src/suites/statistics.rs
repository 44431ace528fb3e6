//! The counters of the driver, and where they can be read.

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use vdma::{Device, Operation, protocol::Command};

use crate::{
    support::{
        MIB, PAGE,
        batch::Batch,
        completion::Expected,
        faults::{self, SLOW, SLUGGISH},
        open, procfs,
        region::Region,
        uring::{self, Request, Uring, fd},
        wait,
    },
    test,
};

#[guest_test]
fn info_describes_the_device() -> Result<()> {
    let device = open()?;
    let info = device.info();
    ensure!(info.memory_size == 64 * MIB as u64, "{info:?}");
    ensure!(
        info.bar_size >= info.memory_size && info.bar_address != 0,
        "{info:?}"
    );
    ensure!(info.num_queues >= 1 && info.queue_size >= 2, "{info:?}");
    ensure!(
        info.max_segments >= 1 && info.max_segments < info.queue_size,
        "{info:?}"
    );
    ensure!(info.max_transfer as usize >= PAGE, "{info:?}");
    for operation in [Operation::Nop, Operation::Read, Operation::Write] {
        ensure!(
            info.operations & operation.bit() != 0,
            "no {}",
            operation.name()
        );
    }
    // Bit 32 is VIRTIO_F_VERSION_1.
    ensure!(
        info.features & 1 << 32 != 0,
        "features {:#x}",
        info.features
    );
    Ok(())
}

#[guest_test]
fn a_file_counts_its_own_requests() -> Result<()> {
    let (one, other) = (open()?, open()?);
    let mut buffer = vec![0; 10_000];
    other.file().write_all_at(&buffer, 0)?;
    for _ in 0..5 {
        one.file().write_all_at(&buffer[..3000], 0)?;
    }
    one.file().read_exact_at(&mut buffer, 17)?;
    one.file().sync_all()?;
    let counts = one.file_statistics()?;
    ensure!(counts.submitted == 7 && counts.completed == 7, "{counts:?}");
    ensure!(counts.failed == 0 && counts.in_flight == 0, "{counts:?}");
    ensure!(
        counts.bytes_written == 15_000 && counts.bytes_read == 10_000,
        "{counts:?}"
    );
    ensure!(counts.in_flight_max == 1, "{counts:?}");
    let counts = other.file_statistics()?;
    ensure!(
        counts.submitted == 1 && counts.bytes_written == 10_000,
        "{counts:?}"
    );
    Ok(())
}

#[guest_test]
fn the_device_counts_the_requests_of_all_files() -> Result<()> {
    let (one, other) = (open()?, open()?);
    let before = one.device_statistics()?;
    let mut buffer = vec![0; 1234];
    one.file().write_all_at(&buffer, 0)?;
    other.file().read_exact_at(&mut buffer, 0)?;
    drop(other);
    let after = open()?.device_statistics()?;
    ensure!(
        after.submitted == before.submitted + 2,
        "{before:?} {after:?}"
    );
    ensure!(
        after.completed == after.submitted && after.in_flight == 0,
        "{after:?}"
    );
    ensure!(
        after.bytes_written == before.bytes_written + 1234,
        "{before:?} {after:?}"
    );
    ensure!(
        after.bytes_read == before.bytes_read + 1234,
        "{before:?} {after:?}"
    );
    Ok(())
}

/// Pages and segments that one write from a range of a region takes.
fn cost(region: &Region, range: std::ops::Range<usize>) -> Result<(u64, u64)> {
    let device = open()?;
    region.pwrite_all(device.file(), range, 0)?;
    let counts = device.file_statistics()?;
    Ok((counts.pages_pinned, counts.segments))
}

#[guest_test]
fn only_touched_pages_are_counted() -> Result<()> {
    let region = Region::anonymous(8 * PAGE)?;
    region.write(0, &vec![1; 8 * PAGE])?;
    for (range, pages) in [
        (0..1, 1),
        (0..PAGE, 1),
        (0..PAGE + 1, 2),
        (PAGE - 1..PAGE + 1, 2),
        (100..200, 1),
        (1..8 * PAGE, 8),
    ] {
        let (pinned, segments) = cost(&region, range.clone())?;
        ensure!(
            pinned == pages,
            "{range:?}: {pinned} pages instead of {pages}"
        );
        ensure!(
            (1..=pages).contains(&segments),
            "{range:?}: {segments} segments for {pages} pages"
        );
    }
    Ok(())
}

#[guest_test]
fn huge_pages_are_coalesced() -> Result<()> {
    const LENGTH: usize = 4 * MIB;
    let region = Region::transparent_huge(LENGTH)?;
    region.write(0, &vec![1; LENGTH])?;
    let lines = procfs::smaps(region.address())?.context("the region is not in smaps")?;
    let huge = procfs::kilobytes(procfs::field(&lines, "AnonHugePages")?)?;
    if huge < LENGTH {
        return test::skip(format!(
            "the kernel allocated {huge} bytes of huge pages instead of {LENGTH}"
        ));
    }
    let (pages, segments) = cost(&region, 0..LENGTH)?;
    ensure!(pages == (LENGTH / PAGE) as u64, "{pages} pages");
    ensure!(segments <= 2, "{segments} segments for two huge pages");
    let (pages, segments) = cost(&region, 5..2 * MIB - 5)?;
    ensure!(
        pages == 512 && segments == 1,
        "{segments} segments for {pages} pages"
    );
    Ok(())
}

#[guest_test]
fn scattered_pages_are_not_coalesced() -> Result<()> {
    // A page that is repeated is not contiguous with itself.
    let device = open()?;
    let region = Region::anonymous(PAGE)?;
    region.write(0, &[1])?;
    let vectors = [libc::iovec {
        iov_base: region.at(0).cast(),
        iov_len: PAGE,
    }; 10];
    let mut ring = Uring::new(1)?;
    let entry = opcode::Writev::new(fd(device.file()), vectors.as_ptr(), 10).build();
    let write = Request::new(entry, Expected::Bytes(10 * PAGE));
    // SAFETY: The region and the vectors live until the request has completed.
    unsafe { ring.run(&[write]) }?;
    let counts = device.file_statistics()?;
    ensure!(
        counts.pages_pinned == 10 && counts.segments == 10,
        "{counts:?}"
    );
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn requests_in_flight_are_counted() -> Result<()> {
    let device = open()?;
    let mut ring = Uring::new(8)?;
    let batch = Batch::at_one_offset(4, PAGE, SLOW.start);
    let region = Region::anonymous(batch.total())?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&device, &region)) }?;
    let during = device.file_statistics()?;
    ensure!(during.submitted == 4, "{during:?}");
    ensure!(
        during.in_flight == during.submitted - during.completed,
        "{during:?}"
    );
    ensure!(during.in_flight_max >= during.in_flight, "{during:?}");
    ring.wait(batch.count)?;
    wait::until_idle(&device)?;
    let after = device.file_statistics()?;
    ensure!(after.in_flight == 0 && after.completed == 4, "{after:?}");
    ensure!(after.in_flight_max > 1, "{after:?}");
    Ok(())
}

#[guest_test]
fn fdinfo_shows_the_counts() -> Result<()> {
    let device = open()?;
    device.file().write_all_at(&[1; 5000], 4000)?;
    let path = format!("/proc/self/fdinfo/{}", device.file().as_raw_fd());
    let text = fs::read_to_string(&path).context(path)?;
    let counts = device.file_statistics()?;
    for (name, value) in [
        ("submitted", counts.submitted),
        ("completed", counts.completed),
        ("failed", counts.failed),
        ("bytes-read", counts.bytes_read),
        ("bytes-written", counts.bytes_written),
        ("pages-pinned", counts.pages_pinned),
        ("segments", counts.segments),
        ("in-flight", counts.in_flight),
        ("in-flight-max", counts.in_flight_max),
        ("queue-full", counts.queue_full),
    ] {
        let line = format!("vdma-{name}:\t{value}");
        ensure!(
            text.lines().any(|found| found == line),
            "no line \"{line}\" in {text}"
        );
    }
    ensure!(counts.bytes_written == 5000, "{counts:?}");
    Ok(())
}

/// Objects in use in a slab cache of the driver.
fn used_objects(name: &str) -> Result<u64> {
    let (used, all, size) =
        procfs::slab(name)?.with_context(|| format!("{name} is not in /proc/slabinfo"))?;
    ensure!(
        used <= all && size > 0,
        "{name}: {used} of {all} objects of {size} bytes"
    );
    Ok(used)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn slab_caches_grow_with_requests_in_flight() -> Result<()> {
    const BATCH: Batch = Batch::at_one_offset(200, PAGE, SLUGGISH.start);
    let mut ring = Uring::new(256)?;
    let region = Region::anonymous(BATCH.total())?;
    let have_grown = |device: &Device, names: &[&str]| -> Result<()> {
        // Read before the number of requests in flight, which can only fall in between.
        let during = names.iter().map(|name| used_objects(name));
        let during = during.collect::<Result<Vec<_>>>()?;
        let in_flight = device.file_statistics()?.in_flight;
        ensure!(
            in_flight > 0,
            "all requests have completed already: nothing was tested"
        );
        for (name, during) in names.iter().zip(during) {
            ensure!(
                during >= in_flight,
                "{name}: {during} objects in use with {in_flight} requests in flight"
            );
        }
        Ok(())
    };
    let device = open()?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&BATCH.reads(&device, &region)) }?;
    have_grown(&device, &["vdma_request"])?;
    ring.wait(BATCH.count)?;
    wait::until_idle(&device)?;

    // A command keeps its results in a transfer until the submitter fetches them.
    let device = open()?;
    let mut commands: Vec<Command> = (0..BATCH.count)
        .map(|index| Command {
            operation: Operation::Read.code(),
            offset: SLUGGISH.start,
            length: PAGE as u64,
            incoming: region.at(index * PAGE) as u64,
            ..Command::default()
        })
        .collect();
    let requests = uring::commands(&device, &mut commands);
    // SAFETY: The commands and the region live until all requests have completed, below.
    unsafe { ring.submit(&requests) }?;
    have_grown(&device, &["vdma_request", "vdma_transfer"])?;
    ring.wait(BATCH.count)?;
    wait::until_idle(&device)
}
