//! Buffers that are prepared for DMA once: registered memory of a user, and memory of the driver.

use std::{fs, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::Errno,
    mm::MapFlags,
    process::{Resource, Rlimit, setrlimit},
};
use vdma::{
    Device, Operation,
    protocol::{COMMAND_INCOMING_BUFFER, COMMAND_OUTGOING_BUFFER, Command},
};

use crate::support::{
    MIB, PAGE, bytes, child::Child, drop_privileges, errno, faults, fuse::FileSystem, open, procfs,
    region::Region, wait,
};

/// A command whose data is in the buffer `id`.
fn with_buffer(operation: Operation, id: u32, at: u64, length: usize) -> Command {
    Command {
        operation: operation.code(),
        flags: COMMAND_INCOMING_BUFFER | COMMAND_OUTGOING_BUFFER,
        length: length as u64,
        incoming: at,
        outgoing: at,
        incoming_buffer: id,
        outgoing_buffer: id,
        ..Command::default()
    }
}

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
fn buffers_work_with_every_operation() -> Result<()> {
    let device = open()?;
    let data = bytes::random(2, 3 * PAGE + 5);
    let mut memory = data.clone();
    let buffer = device.register(&mut memory)?;
    let other = device.allocate(data.len())?;
    device.write(77, buffer.source(None))?;
    ensure!(
        device.compare(77, buffer.source(None))?.is_none(),
        "compare"
    );
    let part = Some(0..data.len() as u64);
    device.copy(buffer.source(None), other.target(part.clone()))?;
    ensure!(
        device.compare(77, other.source(part.clone()))?.is_none(),
        "copy"
    );
    let crc = device.crc32c_of(buffer.source(None), 0)?;
    ensure!(crc == device.crc32c(77, data.len() as u64, 0)?, "crc32c");
    ensure!(
        crc == device.write_crc32c(77, other.source(part.clone()))?,
        "write with a checksum"
    );
    device.fill_memory(other.target(None), 0x1111_1111_1111_1111)?;
    ensure!(other.load::<u64>(8)? == 0x1111_1111_1111_1111, "fill");
    ensure!(
        crc == device.read_crc32c(77, other.target(part))?,
        "read with a checksum"
    );
    let mut back = vec![0; data.len()];
    other.read(0, &mut back)?;
    bytes::expect(&back, &data, "the allocated buffer in the end")
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
    // SAFETY: The slice is made for its address only; nothing reads or writes it.
    let memory = unsafe { std::slice::from_raw_parts_mut(region.at(0), 4 * PAGE) };
    let result = device.register(memory).map(drop);
    errno::expect_vdma(
        result,
        Errno::FAULT,
        "memory with a page that cannot be written",
    )?;
    let mapping = device.map(0, 4 * PAGE)?;
    // SAFETY: As above.
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
    // SAFETY: The slice is made for its address only; nothing reads or writes it.
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

/// The kernel hands out what was freed last, which it does not clear with `init_on_alloc=0`.
#[guest_test(kernel_parameters = &["init_on_alloc=0"])]
fn allocated_memory_is_zeroed() -> Result<()> {
    const LENGTH: usize = 16 * MIB;
    let parameters = fs::read_to_string("/proc/cmdline")?;
    ensure!(parameters.contains("init_on_alloc=0"), "{parameters}");
    let device = open()?;
    let mut back = vec![1; LENGTH];
    for round in 0..4 {
        drop(vec![0xa5_u8; 4 * LENGTH]);
        let buffer = device.allocate(LENGTH)?;
        buffer.read(0, &mut back)?;
        let set = back.iter().position(|byte| *byte != 0);
        ensure!(set.is_none(), "round {round}: byte {set:?} is not zero");
    }
    Ok(())
}

#[guest_test]
fn allocated_memory_is_shared_with_the_device() -> Result<()> {
    let device = open()?;
    let buffer = device.allocate(10 * PAGE)?;
    ensure!(buffer.len() == 10 * PAGE, "{} bytes", buffer.len());
    let mut back = vec![1; 10 * PAGE];
    buffer.read(0, &mut back)?;
    ensure!(
        back.iter().all(|byte| *byte == 0),
        "new memory is not zeroed"
    );
    let data = bytes::random(5, 10 * PAGE);
    buffer.write(0, &data)?;
    device.write(4321, buffer.source(None))?;
    device.file().read_exact_at(&mut back, 4321)?;
    bytes::expect(&back, &data, "what the device wrote from the buffer")?;
    device.fill(4321, 10 * PAGE as u64, 0x2222_2222_2222_2222)?;
    device.read(4321, buffer.target(Some(100..200)))?;
    ensure!(
        buffer.load::<u8>(99)? == data[99] && buffer.load::<u8>(200)? == data[200],
        "bytes outside the range changed"
    );
    ensure!(
        buffer.load::<u32>(100)? == 0x2222_2222,
        "what the device wrote"
    );
    Ok(())
}

#[guest_test]
fn allocated_memory_is_mostly_contiguous() -> Result<()> {
    let device = open()?;
    let buffer = device.allocate(16 * MIB)?;
    // In a guest that has just booted, memory is not fragmented.
    ensure!(buffer.runs() <= 64, "16 MiB in {} runs", buffer.runs());
    let before = device.file_statistics()?;
    device.read(0, buffer.target(None))?;
    let after = device.file_statistics()?;
    ensure!(
        after.segments - before.segments <= 2 * u64::from(buffer.runs()) + 32,
        "{} segments",
        after.segments - before.segments
    );
    Ok(())
}

#[guest_test]
fn allocated_memory_outlives_its_id_and_file() -> Result<()> {
    let device = open()?;
    let buffer = device.allocate(3 * PAGE)?;
    buffer.store(PAGE, 0x1234_5678_u32)?;
    let file = buffer.file().try_clone()?;
    let region = Region::file(&file, 0, 3 * PAGE, MapFlags::SHARED)?;
    drop(buffer);
    drop(file);
    drop(device);
    ensure!(
        region.read(PAGE..PAGE + 4)? == 0x1234_5678_u32.to_le_bytes(),
        "the memory is gone"
    );
    region.write(2 * PAGE, &[1; PAGE])?;
    Ok(())
}

#[guest_test]
fn allocated_memory_can_be_passed_to_another_process() -> Result<()> {
    let device = open()?;
    let buffer = device.allocate(2 * PAGE)?;
    let file = buffer.file().try_clone()?;
    Child::fork(|| {
        let other = open()?;
        let imported = other.import(file)?;
        imported.store(8, 0xfeed_f00d_u32)?;
        other.fill(0, 100, 0x3333_3333_3333_3333)?;
        other.read(0, imported.target(Some(PAGE as u64..PAGE as u64 + 100)))?;
        Ok(())
    })?
    .succeed()?;
    ensure!(
        buffer.load::<u32>(8)? == 0xfeed_f00d,
        "what the child stored"
    );
    ensure!(
        buffer.load::<u32>(PAGE)? == 0x3333_3333,
        "what the child's device wrote"
    );
    let null = fs::File::open("/dev/null")?;
    errno::expect_vdma(
        device.import(null.into()).map(drop),
        Errno::INVAL,
        "a file of another kind",
    )
}

#[guest_test]
fn allocated_memory_is_freed() -> Result<()> {
    const ROUNDS: usize = 20;
    const LENGTH: usize = 64 * MIB;
    let device = open()?;
    let free = procfs::free_memory()?;
    ensure!(
        ROUNDS * LENGTH > free,
        "this guest has too much memory for the test to notice"
    );
    for round in 0..ROUNDS {
        let buffer = device
            .allocate(LENGTH)
            .with_context(|| format!("round {round}"))?;
        buffer.store(LENGTH - 8, 1_u64)?;
    }
    Ok(())
}

#[guest_test]
fn too_much_memory_is_enomem() -> Result<()> {
    let device = open()?;
    let before = device.device_statistics()?.buffers;
    let result = device.allocate(4096 * MIB).map(drop);
    errno::expect_vdma(result, Errno::NOMEM, "more memory than the guest has")?;
    let result = device.allocate(4096 * MIB + 1).map(drop);
    errno::expect_vdma(result, Errno::INVAL, "more memory than a buffer may have")?;
    errno::expect_vdma(device.allocate(0).map(drop), Errno::INVAL, "no memory")?;
    ensure!(
        device.device_statistics()?.buffers == before,
        "a buffer is left"
    );
    Ok(())
}

#[guest_test]
fn buffers_are_private_to_their_file() -> Result<()> {
    let device = open()?;
    let other: Device = open()?;
    let buffer = device.allocate(PAGE)?;
    let mut command = with_buffer(Operation::Read, buffer.id(), 0, 10);
    // SAFETY: The command names a buffer only.
    let result = unsafe { other.run(&mut command) };
    errno::expect_vdma(result, Errno::NOENT, "another file's buffer")?;
    Ok(())
}
