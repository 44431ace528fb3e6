//! Flags and modes of files and calls.

use std::{
    fs::{File, OpenOptions},
    io::{IoSlice, IoSliceMut},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::{Errno, ReadWriteFlags},
    mm::MapFlags,
};

use crate::support::{
    MIB, NODE, PAGE,
    aio::{Context, Iocb, Opcode},
    bytes, errno, open, open_direct, open_with_flags,
    region::Region,
    uring::{self, Uring},
};

#[guest_test]
fn direct_files_take_any_alignment() -> Result<()> {
    let device = open_direct()?;
    let buffer = Region::anonymous(4 * PAGE)?;
    for (start, length, position) in [(0, PAGE, 0), (1, 1, 1), (17, 5000, 4095), (511, 513, 7)] {
        let data = bytes::random(position, length);
        buffer.write(start, &data)?;
        let range = start..start + length;
        buffer.pwrite_all(device.file(), range.clone(), position)?;
        buffer.write(start, &vec![0; length])?;
        buffer.pread_exact(device.file(), range.clone(), position)?;
        bytes::expect(&buffer.read(range)?, &data, "through O_DIRECT")?;
    }
    Ok(())
}

/// The number of bytes, or nothing for `EAGAIN`.
fn or_again(result: rustix::io::Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(moved) => Ok(Some(moved)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error).context("a call with RWF_NOWAIT"),
    }
}

#[guest_test]
fn nowait_succeeds_or_returns_eagain() -> Result<()> {
    let device = open()?;
    for length in [1, PAGE, 100_000, 4 * MIB] {
        let old = bytes::random(1, length);
        let new = bytes::random(2, length);
        device.file().write_all_at(&old, 0)?;
        let source = [IoSlice::new(&new)];
        let result = rustix::io::pwritev2(device.file(), &source, 0, ReadWriteFlags::NOWAIT);
        let written = or_again(result)?;
        // An idle queue has free descriptors for a single request.
        ensure!(
            length > PAGE || written == Some(length),
            "{written:?} of {length} bytes written"
        );
        let written = written.unwrap_or(0);
        let mut expected = old;
        expected[..written].copy_from_slice(&new[..written]);
        let mut back = vec![0; length];
        device.file().read_exact_at(&mut back, 0)?;
        bytes::expect(&back, &expected, "after a write with RWF_NOWAIT")?;

        back.fill(0);
        let mut target = [IoSliceMut::new(&mut back)];
        let result = rustix::io::preadv2(device.file(), &mut target, 0, ReadWriteFlags::NOWAIT);
        let read = or_again(result)?;
        ensure!(
            length > PAGE || read == Some(length),
            "{read:?} of {length} bytes read"
        );
        let read = read.unwrap_or(0);
        bytes::expect(&back[..read], &expected[..read], "a read with RWF_NOWAIT")?;
        ensure!(
            back[read..].iter().all(|&byte| byte == 0),
            "bytes beyond the count"
        );
    }
    Ok(())
}

/// A write appends at the end of device memory, where there is no space, as on a block device.
#[guest_test]
fn appending_is_enospc() -> Result<()> {
    let plain = open()?;
    let old = bytes::random(4, 3 * PAGE);
    plain.file().write_all_at(&old, 0)?;
    let new = Region::anonymous(PAGE)?;
    new.write(0, &bytes::random(5, PAGE))?;
    let data = new.read(0..PAGE)?;

    let device = open_with_flags(libc::O_APPEND)?;
    let file = device.file();
    errno::expect(rustix::io::write(file, &data), Errno::NOSPC, "write")?;
    errno::expect(rustix::io::pwrite(file, &data, 100), Errno::NOSPC, "pwrite")?;
    let flags = ReadWriteFlags::APPEND;
    let result = rustix::io::pwritev2(plain.file(), &[IoSlice::new(&data)], 0, flags);
    errno::expect(result, Errno::NOSPC, "a write with RWF_APPEND")?;
    ensure!(rustix::io::write(file, &[])? == 0, "an empty write");

    let mut context = Context::new(1)?;
    let mut iocbs = [Iocb::transfer(Opcode::Write, file, &new, 0..PAGE, 0, 0)?];
    // SAFETY: The region lives until the request has completed, below.
    unsafe { context.submit_all(&mut iocbs) }?;
    context.wait_for_error(1, Errno::NOSPC).context("libaio")?;
    let mut ring = Uring::new(1)?;
    // SAFETY: The region lives until the request has completed, below.
    unsafe { ring.submit(&[uring::write(file, &new, 0..PAGE, 0)]) }?;
    ring.wait_for_error(1, Errno::NOSPC).context("io_uring")?;

    bytes::expect_at(
        file,
        0,
        &old,
        "device memory, which nothing was appended to",
    )
}

#[guest_test]
fn high_priority_reads_and_writes() -> Result<()> {
    let device = open_direct()?;
    let data = bytes::random(3, 20_000);
    let flags = ReadWriteFlags::HIPRI;
    let moved = rustix::io::pwritev2(device.file(), &[IoSlice::new(&data)], 9, flags)?;
    ensure!(moved == data.len(), "{moved} bytes written");
    let mut back = vec![0; data.len()];
    let mut target = [IoSliceMut::new(&mut back)];
    let moved = rustix::io::preadv2(device.file(), &mut target, 9, flags)?;
    ensure!(moved == data.len(), "{moved} bytes read");
    bytes::expect(&back, &data, "through RWF_HIPRI")
}

#[guest_test]
fn the_access_mode_is_honoured() -> Result<()> {
    let read_only = File::open(NODE)?;
    let mut buffer = [0; 10];
    read_only.read_exact_at(&mut buffer, 0)?;
    errno::expect(
        read_only.write_at(&buffer, 0),
        Errno::BADF,
        "a write to a read-only file",
    )?;
    let result = Region::file(&read_only, 0, PAGE, MapFlags::SHARED).map(|region| region.len());
    errno::expect(
        result,
        Errno::ACCESS,
        "a writable mapping of a read-only file",
    )?;

    let write_only = OpenOptions::new().write(true).open(NODE)?;
    write_only.write_all_at(&buffer, 0)?;
    let result = write_only.read_at(&mut buffer, 0);
    errno::expect(result, Errno::BADF, "a read from a write-only file")
}

#[guest_test]
fn other_ioctls_are_enotty() -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let device = open()?;
    for command in [0, 0x5401, 0xd500, libc::c_ulong::from(u32::MAX)] {
        // SAFETY: The kernel checks the address, which is null.
        let result = unsafe { libc::ioctl(device.file().as_raw_fd(), command, 0) };
        let error = std::io::Error::last_os_error();
        ensure!(result == -1, "ioctl {command:#x} returned {result}");
        errno::expect::<(), _>(Err(error), Errno::NOTTY, &format!("ioctl {command:#x}"))?;
    }
    // A known command with a bad address.
    let command = libc::c_ulong::from(vdma_info_command());
    // SAFETY: The kernel checks the address, which is null.
    let result = unsafe { libc::ioctl(device.file().as_raw_fd(), command, 0) };
    let error = std::io::Error::last_os_error();
    ensure!(result == -1, "ioctl INFO to address 0 returned {result}");
    errno::expect::<(), _>(Err(error), Errno::FAULT, "ioctl INFO to address 0")
}

/// `_IOR(0xd5, 0, DeviceInfo)`.
fn vdma_info_command() -> u32 {
    2 << 30 | 64 << 16 | 0xd5 << 8
}
