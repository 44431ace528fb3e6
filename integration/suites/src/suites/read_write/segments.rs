//! Vectors, and transfers that take several requests.

use std::io::{IoSlice, IoSliceMut};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;

use crate::support::{MIB, PAGE, bytes, open, region::Region};

/// Writes `data` in segments of these lengths, and reads it back in the same segments.
fn by_segments(data: &[u8], lengths: &[usize], position: u64) -> Result<()> {
    let device = open()?;
    let mut rest = data;
    let mut sources = Vec::new();
    for &length in lengths {
        let (segment, behind) = rest.split_at(length);
        sources.push(IoSlice::new(segment));
        rest = behind;
    }
    let total: usize = lengths.iter().sum();
    let moved = rustix::io::pwritev(device.file(), &sources, position)?;
    ensure!(moved == total, "{moved} of {total} bytes written");

    bytes::expect_at(
        device.file(),
        position,
        &data[..total],
        "what the segments wrote",
    )?;

    let mut buffer = vec![0; total];
    let mut rest = buffer.as_mut_slice();
    let mut targets = Vec::new();
    for &length in lengths {
        let (segment, behind) = rest.split_at_mut(length);
        targets.push(IoSliceMut::new(segment));
        rest = behind;
    }
    let moved = rustix::io::preadv(device.file(), &mut targets, position)?;
    ensure!(moved == total, "{moved} of {total} bytes read");
    bytes::expect(&buffer, &data[..total], "what the segments read")?;
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.bytes_written == total as u64 && statistics.failed == 0,
        "{statistics:?}"
    );
    Ok(())
}

#[guest_test]
fn segments_within_one_page() -> Result<()> {
    let data = bytes::random(21, PAGE);
    by_segments(&data, &[1; 100], 0)?;
    by_segments(&data, &[16; 256], 4095)?;
    by_segments(&data, &[1, 0, 2, 0, 0, 3, 500, 1], 99)
}

#[guest_test]
fn segments_over_many_pages() -> Result<()> {
    let mut random = fastrand::Rng::with_seed(22);
    for round in 0..20 {
        let lengths: Vec<usize> = (0..random.usize(1..=1024))
            .map(|_| match random.u8(..4) {
                0 => random.usize(..3),
                1 => random.usize(..64),
                2 => random.usize(..2000),
                _ => random.usize(..6000).saturating_sub(2000),
            })
            .collect();
        let data = bytes::random(round, lengths.iter().sum());
        by_segments(&data, &lengths, random.u64(..10_000))
            .with_context(|| format!("round {round}: {} segments", lengths.len()))?;
    }
    Ok(())
}

#[guest_test]
fn one_page_a_thousand_times() -> Result<()> {
    let device = open()?;
    let page = bytes::random(23, PAGE);
    let sources = vec![IoSlice::new(&page); 1000];
    let moved = rustix::io::pwritev(device.file(), &sources, 100)?;
    ensure!(moved == 1000 * PAGE, "{moved} bytes written");
    bytes::expect_at(
        device.file(),
        100,
        &page.repeat(1000),
        "a thousand times the page",
    )
}

#[guest_test]
fn long_transfers_are_split_and_reassembled() -> Result<()> {
    const LENGTH: usize = 16 * MIB + 4321;
    let device = open()?;
    let data = bytes::random(24, LENGTH);
    let source = Region::anonymous(LENGTH)?;
    let target = Region::anonymous(LENGTH)?;
    // Pages that are touched in random order are scattered in memory, and cannot be coalesced.
    let mut pages: Vec<usize> = (0..LENGTH.div_ceil(PAGE)).collect();
    fastrand::Rng::with_seed(24).shuffle(&mut pages);
    for page in pages {
        source.write(page * PAGE, &[1])?;
        target.write(page * PAGE, &[1])?;
    }
    source.write(0, &data)?;
    let position = 3 * MIB as u64 + 77;
    source.pwrite_all(device.file(), 0..LENGTH, position)?;
    target.pread_exact(device.file(), 0..LENGTH, position)?;
    bytes::expect(&target.read(0..LENGTH)?, &data, "what was read back")?;
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.submitted > 2,
        "the calls were not split: {statistics:?}"
    );
    ensure!(
        statistics.completed == statistics.submitted,
        "{statistics:?}"
    );
    ensure!(statistics.bytes_read == LENGTH as u64, "{statistics:?}");
    Ok(())
}
