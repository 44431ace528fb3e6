//! splice and sendfile: device memory to and from files and pipes, without a copy through user
//! space.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    os::{fd::AsFd, unix::fs::FileExt as _},
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    fs::MemfdFlags,
    pipe::{SpliceFlags, pipe, splice},
};

use crate::support::{MIB, PAGE, bytes, open};

fn scratch(content: &[u8]) -> Result<File> {
    let file = File::from(rustix::fs::memfd_create("scratch", MemfdFlags::CLOEXEC)?);
    file.write_all_at(content, 0)?;
    Ok(file)
}

fn sendfile_all(to: impl AsFd, from: impl AsFd, mut position: u64, length: usize) -> Result<usize> {
    let mut moved = 0;
    while moved < length {
        let count = length - moved;
        let more = rustix::fs::sendfile(&to, &from, Some(&mut position), count)
            .with_context(|| format!("sendfile after {moved} bytes"))?;
        if more == 0 {
            break;
        }
        moved += more;
    }
    Ok(moved)
}

#[guest_test]
fn sendfile_from_the_device() -> Result<()> {
    let device = open()?;
    for (position, length) in [(0, MIB), (4095, 3 * MIB + 1), (12_345, 1), (1, 70_000)] {
        let data = bytes::random(position, length);
        device.file().write_all_at(&data, position)?;
        let target = scratch(&[])?;
        let moved = sendfile_all(&target, device.file(), position, length)?;
        ensure!(moved == length, "{moved} of {length} bytes");
        bytes::expect_at(&target, 0, &data, "what arrived in the file")?;
    }
    Ok(())
}

#[guest_test]
fn sendfile_to_the_device() -> Result<()> {
    let device = open()?;
    for (position, length) in [(0, MIB), (4095, 3 * MIB + 1), (12_345, 1), (1, 70_000)] {
        let data = bytes::random(position + 1, length);
        let around = vec![0x77; length + 200];
        device.file().write_all_at(&around, position)?;
        let source = scratch(&data)?;
        device.file().seek(SeekFrom::Start(position + 100))?;
        let moved = sendfile_all(device.file(), &source, 0, length)?;
        ensure!(moved == length, "{moved} of {length} bytes");
        ensure!(
            device.file().stream_position()? == position + 100 + length as u64,
            "the position"
        );
        let mut expected = around;
        expected[100..100 + length].copy_from_slice(&data);
        bytes::expect_at(
            device.file(),
            position,
            &expected,
            "what arrived in device memory",
        )?;
    }
    Ok(())
}

#[guest_test]
fn sendfile_within_the_device() -> Result<()> {
    let device = open()?;
    let data = bytes::random(8, MIB + 5);
    device.file().write_all_at(&data, 100)?;
    let target = open()?;
    let position = 8 * MIB as u64 + 3;
    target.file().seek(SeekFrom::Start(position))?;
    let moved = sendfile_all(target.file(), device.file(), 100, data.len())?;
    ensure!(moved == data.len(), "{moved} bytes");
    bytes::expect_at(device.file(), position, &data, "what arrived")
}

#[guest_test]
fn splice_to_a_pipe() -> Result<()> {
    let device = open()?;
    let data = bytes::random(9, 12 * PAGE);
    device.file().write_all_at(&data, 0)?;
    let (reader, writer) = pipe()?;
    for (start, length) in [(0_usize, 8 * PAGE), (17, 5000), (4095, 2)] {
        let mut position = start as u64;
        let flags = SpliceFlags::empty();
        let mut moved = 0;
        while moved < length {
            let count = length - moved;
            let more = splice(
                device.file(),
                Some(&mut position),
                &writer,
                None,
                count,
                flags,
            )
            .context("splice to the pipe")?;
            ensure!(more > 0, "{moved} of {length} bytes went into the pipe");
            moved += more;
        }
        ensure!(position == (start + length) as u64, "position {position}");
        let mut back = vec![0; length];
        let mut got = 0;
        while got < length {
            let more = rustix::io::read(&reader, &mut back[got..])?;
            ensure!(more > 0, "{got} of {length} bytes came out of the pipe");
            got += more;
        }
        bytes::expect(
            &back,
            &data[start..start + length],
            "what came out of the pipe",
        )?;
    }
    Ok(())
}

#[guest_test]
fn splice_from_a_pipe() -> Result<()> {
    let device = open()?;
    let (reader, writer) = pipe()?;
    let mut position = 4000;
    let mut expected = Vec::new();
    // Odd lengths make pages of the pipe that are neither full nor aligned.
    for length in [1, 4096, 100, 9001, 3] {
        let data = bytes::random(length as u64, length);
        ensure!(
            rustix::io::write(&writer, &data)? == length,
            "the pipe is full"
        );
        expected.extend_from_slice(&data);
    }
    let mut left = expected.len();
    while left > 0 {
        let flags = SpliceFlags::empty();
        let moved = splice(
            &reader,
            None,
            device.file(),
            Some(&mut position),
            left,
            flags,
        )
        .context("splice from the pipe")?;
        ensure!(moved > 0, "{left} bytes are left");
        left -= moved;
    }
    bytes::expect_at(
        device.file(),
        4000,
        &expected,
        "what arrived in device memory",
    )
}

#[guest_test]
fn sendfile_ends_at_the_end() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let data = bytes::random(10, 5000);
    device.file().write_all_at(&data, size - 5000)?;
    let target = scratch(&[])?;
    let moved = sendfile_all(&target, device.file(), size - 5000, MIB)?;
    ensure!(moved == 5000, "{moved} bytes");
    bytes::expect_at(&target, 0, &data, "the last bytes")
}

#[guest_test]
fn splices_pin_nothing() -> Result<()> {
    let device = open()?;
    let target = scratch(&[])?;
    sendfile_all(&target, device.file(), 0, MIB)?;
    let statistics = device.file_statistics()?;
    ensure!(statistics.bytes_read == MIB as u64, "{statistics:?}");
    ensure!(statistics.pages_pinned == 0, "{statistics:?}");
    Ok(())
}
