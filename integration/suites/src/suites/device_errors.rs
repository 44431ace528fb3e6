//! A device that fails requests, or reports what cannot be true.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;
use vdma::Device;

use crate::support::{
    KIB, MIB, PAGE,
    batch::Batch,
    bytes,
    driver::Unbound,
    errno, faults, kernel_log, open,
    region::Region,
    uring::{self, Uring},
    wait,
};

/// Fails unless requests to a range without faults succeed.
fn works(device: &Device) -> Result<()> {
    bytes::round_trip(
        device.file(),
        1000,
        &bytes::random(5, 9000),
        "the next request",
    )
}

/// Reads and writes at `position` have to fail with `error`.
fn all_fail(position: u64, error: Errno) -> Result<()> {
    let device = open()?;
    for length in [1, 4096, 20_000] {
        let data = bytes::random(6, length);
        let buffer = Region::anonymous(20_480)?;
        buffer.write(0, &data)?;
        let what = format!("{length} bytes at {position:#x}");
        let result = buffer.pwrite(device.file(), 0..length, position)?;
        errno::expect(result, error, &format!("a write of {what}"))?;
        let result = buffer.pread(device.file(), 0..length, position)?;
        errno::expect(result, error, &format!("a read of {what}"))?;
        works(&device)?;
    }
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_failed_request_is_eio() -> Result<()> {
    all_fail(faults::IO_ERROR, Errno::IO)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn an_unsupported_request_is_eopnotsupp() -> Result<()> {
    all_fail(faults::UNSUPPORTED, Errno::OPNOTSUPP)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn any_other_status_is_eio() -> Result<()> {
    all_fail(faults::BAD_REQUEST, Errno::IO)?;
    all_fail(faults::UNKNOWN_STATUS, Errno::IO)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_short_transfer_is_a_short_count() -> Result<()> {
    let device = open()?;
    let data = bytes::random(7, 8192);
    device.map(faults::SHORT, data.len())?.write(0, &data)?;
    let mut buffer = vec![0xee; 8192];
    let moved = device.file().read_at(&mut buffer, faults::SHORT)?;
    ensure!(moved == 4096, "{moved} bytes read, the device moved 4096");
    bytes::expect(&buffer[..moved], &data[..moved], "what was transferred")?;
    bytes::expect(&buffer[moved..], &vec![0xee; 4096], "what was not")?;

    let new = bytes::random(8, 8192);
    let moved = device.file().write_at(&new, faults::SHORT)?;
    ensure!(
        moved == 4096,
        "{moved} bytes written, the device moved 4096"
    );
    let mut back = vec![0; 8192];
    device.map(faults::SHORT, back.len())?.read(0, &mut back)?;
    bytes::expect(&back[..moved], &new[..moved], "what was transferred")?;
    bytes::expect(&back[moved..], &data[moved..], "what was not")?;

    // A caller that continues after a short count gets everything.
    let mut whole = vec![0; 8192];
    device
        .file()
        .read_exact_at(&mut whole[..8191], faults::SHORT)
        .map_or_else(
            // Half of the last byte is no byte at all, which is an error.
            |error| {
                ensure!(
                    error.raw_os_error() == Some(Errno::IO.raw_os_error()),
                    "{error}"
                );
                Ok(())
            },
            |()| Ok(()),
        )?;
    bytes::expect(&whole[..8190], &back[..8190], "piece by piece")?;
    all_fail(faults::NOTHING, Errno::IO)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_used_length_without_a_response_is_eio() -> Result<()> {
    all_fail(faults::LENGTH_ZERO, Errno::IO)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn asynchronous_requests_report_the_same_errors() -> Result<()> {
    let device = open()?;
    let data = bytes::random(6, 20_480);
    let buffer = Region::anonymous(data.len())?;
    buffer.write(0, &data)?;
    let mut ring = Uring::new(2)?;
    for (position, error) in [
        (faults::IO_ERROR, Errno::IO),
        (faults::UNSUPPORTED, Errno::OPNOTSUPP),
        (faults::BAD_REQUEST, Errno::IO),
        (faults::UNKNOWN_STATUS, Errno::IO),
        (faults::NOTHING, Errno::IO),
        (faults::LENGTH_ZERO, Errno::IO),
    ] {
        for length in [1, 4096, 20_000] {
            let requests = [
                uring::write(device.file(), &buffer, 0..length, position),
                uring::read(device.file(), &buffer, 0..length, position),
            ];
            // SAFETY: The buffer lives until all requests have completed, below.
            unsafe { ring.submit(&requests) }?;
            ring.wait_for_error(requests.len(), error)
                .with_context(|| format!("{length} bytes at {position:#x}"))?;
        }
    }
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_used_length_beyond_the_buffers_is_eio() -> Result<()> {
    let device = open()?;
    let data = bytes::random(9, 10_000);
    device.map(faults::LENGTH_HUGE, 12_288)?.write(0, &data)?;
    let region = Region::anonymous(16_384)?;
    region.write(0, &[0xdd; 16_384])?;
    let result = region.pread(device.file(), 0..10_000, faults::LENGTH_HUGE)?;
    errno::expect(
        result,
        Errno::IO,
        "a read with more bytes than were asked for",
    )?;
    bytes::expect(
        &region.read(10_000..16_384)?,
        &[0xdd; 6384],
        "memory after the buffer",
    )?;
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn out_of_order_completions_reach_their_requests() -> Result<()> {
    const BATCH: Batch = Batch::consecutive(8, 6000, faults::SWAPPED);
    let device = open()?;
    let data = bytes::random(10, BATCH.total());
    device
        .map(faults::SWAPPED, BATCH.total().next_multiple_of(PAGE))?
        .write(0, &data)?;
    for _ in 0..10 {
        let region = Region::anonymous(BATCH.total())?;
        let mut ring = Uring::new(8)?;
        // SAFETY: The region lives until all requests have completed.
        unsafe { ring.run(&BATCH.reads(&device, &region)) }?;
        bytes::expect(&region.read(0..BATCH.total())?, &data, "what was read")?;
    }
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_failure_within_a_long_transfer_is_a_short_count() -> Result<()> {
    const BEFORE: usize = 5 * MIB;
    const LENGTH: usize = BEFORE + MIB / 2;
    let device = open()?;
    let position = faults::IO_ERROR - BEFORE as u64;
    let data = bytes::random(11, BEFORE);
    device.file().write_all_at(&data, position)?;
    let region = Region::anonymous(LENGTH)?;
    // Pages in random order take many requests.
    let mut pages: Vec<usize> = (0..LENGTH / PAGE).collect();
    fastrand::Rng::with_seed(11).shuffle(&mut pages);
    for page in pages {
        region.write(page * PAGE, &[1])?;
    }
    let before = device.file_statistics()?;
    let moved = region
        .pread(device.file(), 0..LENGTH, position)?
        .context("the read")?;
    ensure!(
        (1..=BEFORE).contains(&moved),
        "{moved} bytes, {BEFORE} of them without a fault"
    );
    bytes::expect(&region.read(0..moved)?, &data[..moved], "what was read")?;
    let after = device.file_statistics()?;
    ensure!(
        after.submitted > before.submitted + 1,
        "one request: {after:?}"
    );
    ensure!(after.failed > before.failed, "no failure: {after:?}");
    ensure!(after.submitted == after.completed, "{after:?}");
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn every_failure_is_reported_for_its_request() -> Result<()> {
    const BATCH: Batch = Batch::consecutive(60, KIB, faults::EVERY_THIRD);
    let device = open()?;
    let region = Region::anonymous(BATCH.total())?;
    let mut ring = Uring::new(64)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&BATCH.reads(&device, &region)) }?;
    let mut completions = ring.wait_raw(BATCH.count)?;
    completions.sort_unstable();
    let failed: Vec<u64> = completions
        .iter()
        .filter(|completion| completion.is_error(Errno::IO))
        .map(|completion| completion.user_data)
        .collect();
    let whole = completions
        .iter()
        .filter(|completion| completion.is_bytes(KIB))
        .count();
    ensure!(
        failed.len() == BATCH.count / 3 && whole == BATCH.count - BATCH.count / 3,
        "{completions:?}"
    );
    ensure!(
        failed.windows(2).all(|pair| pair[1] - pair[0] == 3),
        "not every third: {failed:?}"
    );
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_request_completed_twice_does_not_affect_others() -> Result<()> {
    let device = open()?;
    let (data, quiet) = (bytes::random(12, 5000), bytes::random(13, 5000));
    device.map(faults::TWICE, 8192)?.write(0, &data)?;
    device.map(faults::TWICE - 8192, 8192)?.write(0, &quiet)?;
    let mut buffer = vec![0; data.len()];
    device
        .file()
        .read_exact_at(&mut buffer, faults::TWICE)
        .context("the request itself")?;
    bytes::expect(&buffer, &data, "what was read")?;
    // The driver may or may not go on after that; wrong data and hangs are errors.
    for _ in 0..20 {
        match device.file().read_at(&mut buffer, faults::TWICE - 8192) {
            Ok(moved) => bytes::expect(&buffer[..moved], &quiet[..moved], "the next read")?,
            Err(error) => errno::expect::<(), _>(Err(error), Errno::IO, "the next read")?,
        }
    }
    drop(device);
    Unbound::new()?.bind()?;
    works(&open()?)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn failures_are_counted_and_logged() -> Result<()> {
    let device = open()?;
    let mut log = kernel_log::Reader::from_now()?;
    let mut buffer = [0; 100];
    let mut fail = || {
        let result = device.file().read_at(&mut buffer, faults::IO_ERROR + 0x123);
        errno::expect(result, Errno::IO, "a failing read")
    };
    fail()?;
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.submitted == 1 && statistics.completed == 1 && statistics.failed == 1,
        "{statistics:?}"
    );
    ensure!(statistics.bytes_read == 0, "{statistics:?}");
    // Earlier failures may have used up the rate limit of this second.
    wait::until("the kernel log names the request that failed", || {
        fail()?;
        let names_it = |line: &String| line.contains("vdma") && line.contains("0x2000123");
        Ok(log.lines()?.iter().any(names_it))
    })?;
    // A device that fails everything does not fill the log.
    for _ in 0..200 {
        fail()?;
    }
    let lines = log.lines()?;
    ensure!(lines.len() < 100, "{} lines for 200 failures", lines.len());
    Ok(())
}
