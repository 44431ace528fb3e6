//! A device that fails requests, or says what cannot be true.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::io::Errno;
use vdma::Device;

use crate::support::{
    KIB, MIB, PAGE, bytes,
    driver::Unbound,
    errno, faults, kernel_log, open,
    region::Region,
    uring::{Uring, fd},
    wait,
};

/// Fails unless a request to a place without faults does what it should.
fn works(device: &Device) -> Result<()> {
    let data = bytes::random(5, 9000);
    device
        .file()
        .write_all_at(&data, 1000)
        .context("the next request")?;
    let mut back = vec![0; data.len()];
    device
        .file()
        .read_exact_at(&mut back, 1000)
        .context("the next request")?;
    bytes::expect(&back, &data, "the next request")
}

/// Reads and writes at `position` have to end in `error`, and leave the buffer alone.
fn all_fail(position: u64, error: Errno) -> Result<()> {
    let device = open()?;
    for length in [1, 4096, 20_000] {
        let data = bytes::random(6, length);
        let buffer = Region::anonymous(20_480)?;
        buffer.write(0, &data)?;
        let what = format!("{length} bytes at {position:#x}");
        let result = buffer.drain_to(device.file(), 0..length, position)?;
        errno::expect(result, error, &format!("a write of {what}"))?;
        let result = buffer.fill_from(device.file(), 0..length, position)?;
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
    bytes::expect(&buffer[..moved], &data[..moved], "what was moved")?;
    bytes::expect(&buffer[moved..], &vec![0xee; 4096], "what was not")?;

    let new = bytes::random(8, 8192);
    let moved = device.file().write_at(&new, faults::SHORT)?;
    ensure!(
        moved == 4096,
        "{moved} bytes written, the device moved 4096"
    );
    let mut back = vec![0; 8192];
    device.map(faults::SHORT, back.len())?.read(0, &mut back)?;
    bytes::expect(&back[..moved], &new[..moved], "what was moved")?;
    bytes::expect(&back[moved..], &data[moved..], "what was not")?;

    // A caller that goes on where a short count ends gets everything.
    let mut whole = vec![0; 8192];
    device
        .file()
        .read_exact_at(&mut whole[..8191], faults::SHORT)
        .map_or_else(
            // The last byte's half is none.
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
            let file = fd(device.file());
            let entries = [
                opcode::Write::new(file, buffer.at(0), length)
                    .offset(position)
                    .build(),
                opcode::Read::new(file, buffer.at(0), length)
                    .offset(position)
                    .build(),
            ];
            // SAFETY: The buffer lives until all has completed, below.
            unsafe { ring.submit(&entries) }?;
            for completion in ring.wait(2)? {
                ensure!(
                    completion.result == -error.raw_os_error(),
                    "{length} bytes at {position:#x}: {}",
                    completion.result
                );
            }
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
    let result = region.fill_from(device.file(), 0..10_000, faults::LENGTH_HUGE)?;
    errno::expect(
        result,
        Errno::IO,
        "a read with more bytes than were asked for",
    )?;
    bytes::expect(
        &region.read(10_000..16_384)?,
        &[0xdd; 6384],
        "memory behind the buffer",
    )?;
    works(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn out_of_order_completions_reach_their_requests() -> Result<()> {
    const COUNT: usize = 8;
    const LENGTH: usize = 6000;
    let device = open()?;
    let data = bytes::random(10, COUNT * LENGTH);
    device
        .map(faults::SWAPPED, (COUNT * LENGTH).next_multiple_of(PAGE))?
        .write(0, &data)?;
    for _ in 0..10 {
        let region = Region::anonymous(COUNT * LENGTH)?;
        let mut ring = Uring::new(8)?;
        let entries: Vec<_> = (0..COUNT)
            .map(|index| {
                let start = index * LENGTH;
                opcode::Read::new(fd(device.file()), region.at(start), 6000)
                    .offset(faults::SWAPPED + start as u64)
                    .build()
                    .user_data(index as u64)
            })
            .collect();
        // SAFETY: The region lives until all has completed, below.
        unsafe { ring.submit(&entries) }?;
        let mut seen = [false; COUNT];
        for completion in ring.wait(COUNT)? {
            ensure!(completion.result == 6000, "{completion:?}");
            let seen = &mut seen[usize::try_from(completion.user_data)?];
            ensure!(!*seen, "{completion:?} twice");
            *seen = true;
        }
        bytes::expect(&region.read(0..COUNT * LENGTH)?, &data, "what was read")?;
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
    // Pages in no order make many requests.
    let mut pages: Vec<usize> = (0..LENGTH / PAGE).collect();
    fastrand::Rng::with_seed(11).shuffle(&mut pages);
    for page in pages {
        region.write(page * PAGE, &[1])?;
    }
    let before = device.file_statistics()?;
    let moved = region
        .fill_from(device.file(), 0..LENGTH, position)?
        .context("the read")?;
    ensure!(
        (1..=BEFORE).contains(&moved),
        "{moved} bytes, {BEFORE} are good"
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
    const COUNT: usize = 60;
    let device = open()?;
    let region = Region::anonymous(COUNT * KIB)?;
    let mut ring = Uring::new(64)?;
    let entries: Vec<_> = (0..COUNT)
        .map(|index| {
            opcode::Read::new(fd(device.file()), region.at(index * KIB), 1024)
                .offset(faults::EVERY_THIRD + (index * KIB) as u64)
                .build()
                .user_data(index as u64)
        })
        .collect();
    // SAFETY: The region lives until all has completed, below.
    unsafe { ring.submit(&entries) }?;
    let mut completions = ring.wait(COUNT)?;
    completions.sort_unstable();
    let failed: Vec<u64> = completions
        .iter()
        .filter(|completion| completion.result == -Errno::IO.raw_os_error())
        .map(|completion| completion.user_data)
        .collect();
    let whole = completions
        .iter()
        .filter(|completion| completion.result == 1024)
        .count();
    ensure!(
        failed.len() == COUNT / 3 && whole == COUNT - COUNT / 3,
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
    // Whether the driver can go on after that is its own affair; wrong data and hangs are not.
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
    // Others may have used up what the driver allows itself to say in this second.
    wait::until("the kernel log names the request that failed", || {
        fail()?;
        let told = |line: &String| line.contains("vdma") && line.contains("0x2000123");
        Ok(log.lines()?.iter().any(told))
    })?;
    // A device that fails everything does not fill the log.
    for _ in 0..200 {
        fail()?;
    }
    let lines = log.lines()?;
    ensure!(lines.len() < 100, "{} lines for 200 failures", lines.len());
    Ok(())
}
