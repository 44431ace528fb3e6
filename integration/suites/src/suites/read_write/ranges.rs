//! Alignments, and the ends of device memory.

use std::{
    io::{IoSlice, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;

use crate::support::{MIB, PAGE, bytes, errno, open, region::Region};

/// Offset of the window in device memory: not at a page boundary.
const WINDOW_AT: u64 = 5 * MIB as u64 - 1234;

/// Bytes on either side of the window that must not change.
const MARGIN: usize = 300;

/// A length or offset near a boundary that is easy to get wrong, or any other.
fn odd_number(random: &mut fastrand::Rng, most: usize) -> usize {
    const NEAR: [usize; 9] = [0, 1, 8, 63, 64, 512, PAGE, 2 * PAGE, 4 * PAGE];
    let number = if random.bool() {
        let near = NEAR[random.usize(..NEAR.len())];
        (near + random.usize(..=4)).saturating_sub(2)
    } else {
        random.usize(..=most)
    };
    number.min(most)
}

#[guest_test]
fn any_alignment_and_length_moves_these_bytes_and_no_others() -> Result<()> {
    for seed in 1..=3 {
        random_operations(seed).with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// Performs random operations on a window of device memory and on an array, which have to stay
/// equal.
fn random_operations(seed: u64) -> Result<()> {
    const WINDOW: usize = 6 * PAGE;
    const BUFFER: usize = 6 * PAGE;
    let mut random = fastrand::Rng::with_seed(seed);
    let device = open()?;
    let file = device.file();
    let buffer = Region::anonymous(BUFFER)?;

    let mut oracle = bytes::random(seed, MARGIN + WINDOW + MARGIN);
    let margin_at = WINDOW_AT - MARGIN as u64;
    file.write_all_at(&oracle, margin_at)?;

    for step in 0..200 {
        let offset = odd_number(&mut random, WINDOW);
        let length = odd_number(&mut random, (WINDOW - offset).min(BUFFER));
        let start = odd_number(&mut random, BUFFER - length);
        let range = start..start + length;
        let position = WINDOW_AT + offset as u64;
        let device_range = MARGIN + offset..MARGIN + offset + length;
        let before = bytes::random(random.u64(..), BUFFER);
        buffer.write(0, &before)?;
        let is_write = random.bool();
        let what = format!(
            "step {step}: {} of {length} bytes at device {offset:#x}, buffer {start:#x}",
            if is_write { "write" } else { "read" }
        );
        if is_write {
            buffer
                .pwrite_all(file, range.clone(), position)
                .with_context(|| what.clone())?;
            oracle[device_range].copy_from_slice(&before[range]);
            bytes::expect(
                &buffer.read(0..BUFFER)?,
                &before,
                &format!("{what}: the buffer"),
            )?;
        } else {
            buffer
                .pread_exact(file, range.clone(), position)
                .with_context(|| what.clone())?;
            let mut expected = before;
            expected[range].copy_from_slice(&oracle[device_range]);
            bytes::expect(
                &buffer.read(0..BUFFER)?,
                &expected,
                &format!("{what}: the buffer"),
            )?;
        }
    }
    // The BAR exposes device memory to the CPU without the DMA path, which may be wrong in reads
    // and writes alike.
    let first_page = margin_at / PAGE as u64 * PAGE as u64;
    let lead = usize::try_from(margin_at - first_page)?;
    let mapping = device.map(first_page, (lead + oracle.len()).next_multiple_of(PAGE))?;
    let mut seen = vec![0; oracle.len()];
    mapping.read(lead, &mut seen)?;
    bytes::expect(&seen, &oracle, "device memory in the end")
}

#[guest_test]
fn reading_at_the_end_returns_zero() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for position in [size, size + 1, size + MIB as u64, i64::MAX as u64 - 4096] {
        let mut buffer = [0xaa; 100];
        let moved = device.file().read_at(&mut buffer, position)?;
        ensure!(moved == 0, "{moved} bytes read at {position:#x}");
        ensure!(buffer == [0xaa; 100], "the buffer changed");
    }
    Ok(())
}

#[guest_test]
fn writing_at_the_end_is_enospc() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for position in [size, size + 1, size + MIB as u64, i64::MAX as u64 - 4096] {
        let result = device.file().write_at(&[1; 100], position);
        errno::expect(result, Errno::NOSPC, &format!("a write at {position:#x}"))?;
    }
    Ok(())
}

#[guest_test]
fn ranges_across_the_end_are_short() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for inside in [1, 511, PAGE, PAGE + 1, 3 * PAGE - 1] {
        let position = size - inside as u64;
        let data = bytes::random(inside as u64, inside + 2 * PAGE);
        let moved = device.file().write_at(&data, position)?;
        ensure!(moved == inside, "{moved} bytes written, {inside} fit");
        let mut buffer = vec![0x55; data.len()];
        let moved = device.file().read_at(&mut buffer, position)?;
        ensure!(moved == inside, "{moved} bytes read, {inside} are there");
        bytes::expect(
            &buffer[..inside],
            &data[..inside],
            "the part inside the device",
        )?;
        ensure!(
            buffer[inside..].iter().all(|&byte| byte == 0x55),
            "the buffer changed beyond the end"
        );
    }
    Ok(())
}

#[guest_test]
fn negative_offsets_are_einval() -> Result<()> {
    let device = open()?;
    let mut buffer = [0; 8];
    let result = device.file().read_at(&mut buffer, u64::MAX);
    errno::expect(result, Errno::INVAL, "a read at -1")?;
    let result = device.file().write_at(&buffer, i64::MIN.cast_unsigned());
    errno::expect(result, Errno::INVAL, "a write at -2^63")
}

#[guest_test]
fn zero_length_calls_submit_no_request() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    for position in [0, 1, size - 1, size, size + 1] {
        let moved = device.file().write_at(&[], position)?;
        ensure!(moved == 0, "{moved} bytes written");
        let moved = device.file().read_at(&mut [], position)?;
        ensure!(moved == 0, "{moved} bytes read");
    }
    let empty: [IoSlice<'_>; 3] = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
    ensure!(rustix::io::pwritev(device.file(), &empty, 0)? == 0);
    ensure!(
        device.file_statistics()?.submitted == 0,
        "a request was made"
    );
    Ok(())
}

#[guest_test]
fn seeking_to_the_end_gives_the_size() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut file = device.file();
    ensure!(
        file.seek(SeekFrom::End(0))? == size,
        "the end is not the size"
    );
    ensure!(file.seek(SeekFrom::End(-5))? == size - 5);
    ensure!(file.seek(SeekFrom::Current(3))? == size - 2);
    errno::expect(
        file.seek(SeekFrom::Current(i64::MIN)),
        Errno::INVAL,
        "a seek to before 0",
    )
}

#[guest_test]
fn the_position_moves_by_what_was_moved() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut file = device.file();
    let data = bytes::random(9, 10_000);
    file.seek(SeekFrom::Start(777))?;
    file.write_all(&data[..3000])?;
    file.write_all(&data[3000..])?;
    ensure!(file.stream_position()? == 10_777);
    file.seek(SeekFrom::Start(777))?;
    let mut read = vec![0; 10_000];
    file.read_exact(&mut read[..1])?;
    file.read_exact(&mut read[1..])?;
    bytes::expect(&read, &data, "what was written")?;
    ensure!(file.stream_position()? == 10_777);
    file.seek(SeekFrom::End(-10))?;
    ensure!(file.read(&mut read)? == 10, "a read across the end");
    ensure!(file.stream_position()? == size);
    errno::expect(file.write(&[1]), Errno::NOSPC, "a write at the end")?;
    ensure!(
        file.stream_position()? == size,
        "a failed write moved the position"
    );
    // Calls with an offset do not use it.
    file.read_exact_at(&mut read, 0)?;
    ensure!(file.stream_position()? == size);
    Ok(())
}
