//! Registered memory of a user, which stays pinned.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::Errno,
    mm::MapFlags,
    process::{Resource, Rlimit, setrlimit},
};
use vdma::Operation;

use super::with_buffer;
use crate::support::{
    MIB, PAGE, bytes, child::Child, drop_privileges, errno, faults, fuse::FileSystem, open, procfs,
    region::Region, wait,
};

#[guest_test]
fn registered_memory_stays_pinned() -> Result<()> {
    let device = open()?;
    let before = procfs::pinned_pages()?;
    let mut memory = vec![7; 10 * PAGE];
    let start = PAGE - memory.as_ptr() as usize % PAGE + 100;
    let buffer = device.register(&mut memory[start..start + 3 * PAGE])?;
    let pinned = procfs::pinned_pages()? - before;
    ensure!(
        pinned == 4,
        "{pinned} pages are pinned for 3 pages from byte 100 on"
    );
    ensure!(
        device.device_statistics()?.buffers == 1,
        "the buffer is not counted"
    );
    drop(buffer);
    ensure!(
        procfs::pinned_pages()? == before,
        "the pages are still pinned"
    );
    ensure!(
        device.device_statistics()?.buffers == 0,
        "the buffer is still counted"
    );
    Ok(())
}

#[guest_test]
fn registered_memory_is_charged() -> Result<()> {
    let device = open()?;
    let before = procfs::locked_pages()?;
    let mut memory = vec![0; 64 * PAGE];
    let buffer = device.register(&mut memory)?;
    let charged = procfs::locked_pages()? - before;
    ensure!(
        (64..=65).contains(&charged),
        "{charged} pages are charged for 64"
    );
    drop(buffer);
    ensure!(
        procfs::locked_pages()? == before,
        "the charge was not released"
    );
    Ok(())
}

#[guest_test]
fn rlimit_memlock_is_enforced() -> Result<()> {
    let device = open()?;
    Child::fork(|| {
        let limit = Rlimit {
            current: Some(16 * PAGE as u64),
            maximum: Some(16 * PAGE as u64),
        };
        setrlimit(Resource::Memlock, limit).context("setrlimit")?;
        drop_privileges()?;
        let mut memory = vec![0; 64 * PAGE];
        let refused = device.register(&mut memory).map(drop);
        errno::expect_vdma(refused, Errno::NOMEM, "64 pages under a limit of 16")?;
        let first = device.register(&mut memory[..8 * PAGE])?;
        ensure!(procfs::locked_pages()? >= 8, "nothing is charged");
        drop(first);
        ensure!(procfs::locked_pages()? == 0, "the charge was not released");
        Ok(())
    })?
    .succeed()
}

#[guest_test]
fn requests_with_buffers_pin_nothing() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 16 * PAGE);
    device.file().write_all_at(&data, 0)?;
    let mut memory = vec![0; 16 * PAGE];
    let buffer = device.register(&mut memory)?;
    let before = device.file_statistics()?;
    for _ in 0..10 {
        device.read(0, buffer.target(None))?;
    }
    let after = device.file_statistics()?;
    ensure!(
        after.pages_pinned == before.pages_pinned,
        "pages were pinned again"
    );
    ensure!(
        after.bytes_read - before.bytes_read == 10 * 16 * PAGE as u64,
        "{after:?}"
    );
    let mut back = vec![0; 16 * PAGE];
    buffer.load(0, &mut back)?;
    bytes::expect(&back, &data, "what was read into a buffer")?;
    drop(buffer);
    bytes::expect(&memory, &data, "the memory afterwards")
}

#[guest_test]
fn any_part_of_a_buffer_can_be_used() -> Result<()> {
    const LENGTH: usize = 3 * MIB;
    let device = open()?;
    let data = bytes::random(3, LENGTH);
    device.file().write_all_at(&data, 0)?;
    let mut memory = vec![0; LENGTH + 1000];
    let buffer = device.register(&mut memory[333..333 + LENGTH])?;
    for (at, length) in [
        (0, 1),
        (4095, 2),
        (1, LENGTH - 1),
        (LENGTH - 1, 1),
        (LENGTH, 0),
        (1_000_003, 999_999),
    ] {
        let zeroes = vec![0; LENGTH];
        buffer.store(0, &zeroes)?;
        let mut command = with_buffer(Operation::Read, buffer.id(), at as u64, length);
        command.offset = 5.min((LENGTH - length) as u64);
        let from = usize::try_from(command.offset)?;
        // SAFETY: The command names a buffer only.
        unsafe { device.run(&mut command) }?;
        ensure!(command.result == length as i64, "{command:?}");
        let mut expected = zeroes;
        expected[at..at + length].copy_from_slice(&data[from..from + length]);
        let mut back = vec![0; LENGTH];
        buffer.load(0, &mut back)?;
        bytes::expect(
            &back,
            &expected,
            "the buffer after a read into a part of it",
        )?;
    }
    for (at, length) in [(LENGTH as u64, 1), (0, LENGTH + 1), (u64::MAX, 2)] {
        let mut command = with_buffer(Operation::Read, buffer.id(), at, length);
        // SAFETY: The command names a buffer only.
        let result = unsafe { device.run(&mut command) };
        errno::expect_vdma(result, Errno::INVAL, "a range that exceeds the buffer")?;
    }
    Ok(())
}

#[guest_test]
fn closing_the_file_releases_its_buffers() -> Result<()> {
    let observer = open()?;
    let pinned = procfs::pinned_pages()?;
    let locked = procfs::locked_pages()?;
    let mut memory = vec![0; 32 * PAGE];
    {
        let device = open()?;
        let buffer = device.register(&mut memory)?;
        // Like a program that never releases it.
        std::mem::forget(buffer);
        ensure!(procfs::pinned_pages()? > pinned, "nothing is pinned");
    }
    wait::until("the pages are unpinned", || {
        Ok(procfs::pinned_pages()? == pinned)
    })?;
    ensure!(
        procfs::locked_pages()? == locked,
        "the charge was not released"
    );
    ensure!(
        observer.device_statistics()?.buffers == 0,
        "the buffer is still counted"
    );
    Ok(())
}

#[guest_test]
fn memory_that_cannot_be_pinned_is_refused() -> Result<()> {
    let device = open()?;
    let region = Region::anonymous(4 * PAGE)?;
    region.write(0, &[1; 4 * PAGE])?;
    region.protect_range(2 * PAGE..3 * PAGE, rustix::mm::MprotectFlags::READ)?;
    let pinned = procfs::pinned_pages()?;
    let locked = procfs::locked_pages()?;
    // SAFETY: Only the address of the slice is used; its bytes are not accessed.
    let memory = unsafe { std::slice::from_raw_parts_mut(region.at(0), 4 * PAGE) };
    let result = device.register(memory).map(drop);
    errno::expect_vdma(
        result,
        Errno::FAULT,
        "memory with a page that cannot be written",
    )?;
    let mapping = device.map(0, 4 * PAGE)?;
    // SAFETY: Only the address of the slice is used; its bytes are not accessed.
    let memory = unsafe { std::slice::from_raw_parts_mut(mapping.address() as *mut u8, 4 * PAGE) };
    let result = device.register(memory).map(drop);
    errno::expect_vdma(result, Errno::FAULT, "mapped device memory")?;
    errno::expect_vdma(
        device.register(&mut []).map(drop),
        Errno::INVAL,
        "no memory",
    )?;
    ensure!(procfs::pinned_pages()? == pinned, "pages stay pinned");
    ensure!(procfs::locked_pages()? == locked, "pages stay charged");
    Ok(())
}

/// Long-term pins would interfere with writeback.
#[guest_test]
fn file_mappings_cannot_be_pinned_long_term() -> Result<()> {
    let system = FileSystem::mount(vec![3; 4 * PAGE])?;
    let file = system.open()?;
    let region = Region::file(&file, 0, 4 * PAGE, MapFlags::SHARED)?;
    let device = open()?;
    let pinned = procfs::pinned_pages()?;
    // SAFETY: Only the address of the slice is used; its bytes are not accessed.
    let memory = unsafe { std::slice::from_raw_parts_mut(region.at(0), 4 * PAGE) };
    let result = device.register(memory).map(drop);
    errno::expect_vdma(result, Errno::FAULT, "a mapped file")?;
    ensure!(procfs::pinned_pages()? == pinned, "pages stay pinned");
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_released_buffer_stays_pinned_until_completion() -> Result<()> {
    let device = open()?;
    let pinned = procfs::pinned_pages()?;
    let data = bytes::random(4, 4 * PAGE);
    device.file().write_all_at(&data, faults::SLOW.start)?;
    let region = Region::anonymous(4 * PAGE)?;
    std::thread::scope(|scope| {
        // SAFETY: Nothing but the device accesses the region until the request has completed.
        let memory = unsafe { std::slice::from_raw_parts_mut(region.at(0), 4 * PAGE) };
        let buffer = device.register(memory)?;
        let id = buffer.id();
        let device = &device;
        let reader = scope.spawn(move || {
            let mut command = with_buffer(Operation::Read, id, 0, 4 * PAGE);
            command.offset = faults::SLOW.start;
            // SAFETY: The command names a buffer only.
            unsafe { device.run(&mut command) }.map(|()| command.result)
        });
        wait::until_busy(device)?;
        drop(buffer);
        ensure!(
            procfs::pinned_pages()? > pinned,
            "the pages were unpinned while the device used them"
        );
        let result = reader.join().ok().context("the reader panicked")??;
        ensure!(result == 4 * PAGE as i64, "{result}");
        Ok(())
    })?;
    bytes::expect(&region.read(0..4 * PAGE)?, &data, "what was read")?;
    wait::until("the pages are unpinned", || {
        Ok(procfs::pinned_pages()? == pinned)
    })
}
