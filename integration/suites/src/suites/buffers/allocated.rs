//! Memory that the driver allocates.

use std::{fs, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, mm::MapFlags};

use crate::support::{MIB, PAGE, bytes, child::Child, errno, open, procfs, region::Region};

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
        "the memory lost its contents"
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
