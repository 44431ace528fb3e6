//! Mappings that are populated by page faults.

use std::{fs::File, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, mm::MapFlags, process::Signal};
use vdma::{Device, MapMode};

use crate::support::{
    MIB, PAGE, bytes, child::Child, driver::Unbound, errno, open, procfs, region::Region,
};

/// Opens the device with lazy mappings.
fn lazy() -> Result<Device> {
    let device = open()?;
    device.set_map_mode(MapMode::Lazy)?;
    Ok(device)
}

#[guest_test]
fn nothing_is_mapped_before_the_first_access() -> Result<()> {
    let device = lazy()?;
    let region = Region::file(device.file(), 0, 4 * MIB, MapFlags::SHARED)?;
    let faults = |device: &Device| -> Result<u64> {
        let statistics = device.file_statistics()?;
        Ok(statistics.faults + statistics.huge_faults)
    };
    ensure!(faults(&device)? == 0, "faults before the first access");
    region.write(5, &[1])?;
    ensure!(
        faults(&device)? == 1,
        "{} faults for one access",
        faults(&device)?
    );
    region.write(6, &[1])?;
    ensure!(faults(&device)? == 1, "another fault for the same page");
    Ok(())
}

#[guest_test]
fn huge_pages_take_fewer_faults() -> Result<()> {
    const LENGTH: usize = 16 * MIB;
    let device = lazy()?;
    let region = Region::file(device.file(), 0, LENGTH, MapFlags::SHARED)?;
    ensure!(
        region.address().is_multiple_of(2 * MIB),
        "the kernel chose {:#x}, which is not aligned for huge pages",
        region.address()
    );
    for page in 0..LENGTH / PAGE {
        region.write(page * PAGE, &[1])?;
    }
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.huge_faults == 8 && statistics.faults == 0,
        "{} huge and {} small faults for 16 MiB",
        statistics.huge_faults,
        statistics.faults
    );
    Ok(())
}

#[guest_test]
fn other_alignments_fall_back_to_pages() -> Result<()> {
    let device = lazy()?;
    // The second half of a huge page, and the first half of the next.
    let region = Region::file(device.file(), MIB as u64, 2 * MIB, MapFlags::SHARED)?;
    for page in 0..2 * MIB / PAGE {
        region.write(page * PAGE, &[1])?;
    }
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.huge_faults == 0 && statistics.faults == 512,
        "{} huge and {} small faults",
        statistics.huge_faults,
        statistics.faults
    );
    Ok(())
}

#[guest_test]
fn lazy_and_eager_mappings_share_memory() -> Result<()> {
    let device = lazy()?;
    let offset = 5 * PAGE as u64;
    let lazy = Region::file(device.file(), offset, 3 * MIB, MapFlags::SHARED)?;
    device.set_map_mode(MapMode::Eager)?;
    let eager = Region::file(device.file(), offset, 3 * MIB, MapFlags::SHARED)?;
    let data = bytes::random(1, 3 * MIB);
    lazy.write(0, &data)?;
    bytes::expect(&eager.read(0..3 * MIB)?, &data, "the other mapping")?;
    bytes::expect_at(device.file(), offset, &data, "what the device reads")?;
    ensure!(device.file_statistics()?.mappings == 2, "two mappings");
    Ok(())
}

#[guest_test]
fn maps_and_smaps_show_a_lazy_mapping() -> Result<()> {
    let device = lazy()?;
    let region = Region::file(device.file(), 0, 2 * MIB, MapFlags::SHARED)?;
    region.write(0, &[1])?;
    let lines = procfs::smaps(region.address())?.context("no line for the mapping")?;
    ensure!(
        lines[0].contains("rw-s") && lines[0].ends_with("/dev/vdma0"),
        "{}",
        lines[0]
    );
    let flags = lines
        .iter()
        .find_map(|line| line.strip_prefix("VmFlags:"))
        .context("no VmFlags")?;
    for flag in ["io", "pf", "de", "dd"] {
        ensure!(
            flags.split(' ').any(|word| word == flag),
            "no {flag} in {flags}"
        );
    }
    Ok(())
}

#[guest_test]
fn a_forked_child_takes_its_own_faults() -> Result<()> {
    let device = lazy()?;
    let region = Region::file(device.file(), 0, PAGE, MapFlags::SHARED)?;
    region.write(0, &[1])?;
    Child::fork(|| {
        ensure!(region.read(0..1)? == [1], "the child reads other bytes");
        region.write(1, &[2])
    })?
    .succeed()?;
    ensure!(region.read(1..2)? == [2], "the parent reads other bytes");
    Ok(())
}

#[guest_test]
fn mappings_are_counted_exactly() -> Result<()> {
    for mode in [MapMode::Lazy, MapMode::Eager] {
        let device = open()?;
        device.set_map_mode(mode)?;
        let observer = open()?;
        let count = || -> Result<u64> { Ok(observer.device_statistics()?.mappings) };
        ensure!(count()? == 0, "{} mappings at first", count()?);
        let mut region = Region::file(device.file(), 0, 8 * PAGE, MapFlags::SHARED)?;
        region.write(0, &[1])?;
        ensure!(count()? == 1, "{} mappings, one made", count()?);
        Child::fork(|| {
            ensure!(count()? == 2, "{} mappings in a child", count()?);
            Ok(())
        })?
        .succeed()?;
        ensure!(count()? == 1, "{} mappings after a child", count()?);
        region.relocate()?;
        ensure!(count()? == 1, "{} mappings after mremap", count()?);
        ensure!(region.remap(16 * PAGE).is_err(), "the mapping grew");
        ensure!(
            count()? == 1,
            "{} mappings after a refused mremap",
            count()?
        );
        let (first, mut rest) = region.split(3 * PAGE)?;
        rest.cut_front(2 * PAGE)?;
        ensure!(count()? == 2, "{} mappings after a hole was made", count()?);
        drop(rest);
        ensure!(count()? == 1, "{} mappings after one part went", count()?);
        drop(first);
        ensure!(count()? == 0, "{} mappings in the end", count()?);
        let private = Region::file(device.file(), 0, PAGE, MapFlags::PRIVATE).map(drop);
        errno::expect(private, Errno::INVAL, "a private mapping")?;
        ensure!(count()? == 0, "{} mappings after a refused one", count()?);
    }
    Ok(())
}

/// Stores to a mapping after the device was removed.
fn touch_after_removal(touched_before: bool) -> Result<()> {
    let device = lazy()?;
    let region = Region::file(device.file(), 0, 4 * MIB, MapFlags::SHARED)?;
    if touched_before {
        region.write(0, &[1])?;
        region.write(3 * MIB, &[1])?;
    }
    let unbound = Unbound::new()?;
    Child::fork(|| {
        region.write(0, &[2])?;
        Ok(())
    })?
    .die_of(Signal::BUS)?;
    errno::expect(
        Region::file(device.file(), 0, PAGE, MapFlags::SHARED).map(drop),
        Errno::NODEV,
        "a mapping of a removed device",
    )?;
    unbound.bind()?;
    // The old file stays dead, and a new one works.
    Child::fork(|| {
        region.write(0, &[2])?;
        Ok(())
    })?
    .die_of(Signal::BUS)?;
    let device = lazy()?;
    Region::file(device.file(), 0, PAGE, MapFlags::SHARED)?.write(0, &[1])
}

#[guest_test]
fn accesses_after_removal_raise_sigbus() -> Result<()> {
    touch_after_removal(true)
}

#[guest_test]
fn accesses_to_an_untouched_mapping_raise_sigbus() -> Result<()> {
    touch_after_removal(false)
}

/// `/proc/PID/mem` accesses mappings as ptrace does, through `vm_ops->access`.
#[guest_test]
fn debuggers_reach_device_memory() -> Result<()> {
    for mode in [MapMode::Eager, MapMode::Lazy] {
        let device = open()?;
        device.set_map_mode(mode)?;
        let region = Region::file(device.file(), 0, 2 * PAGE, MapFlags::SHARED)?;
        let data = bytes::random(2, 100);
        region.write(4000, &data)?;
        region.write(0, &[0])?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem")?;
        let mut back = vec![0; 100];
        let address = (region.address() + 4000) as u64;
        memory
            .read_exact_at(&mut back, address)
            .context("reading through /proc/self/mem")?;
        bytes::expect(&back, &data, "what a debugger reads")?;
        memory
            .write_all_at(&[9; 10], address)
            .context("writing through /proc/self/mem")?;
        device.file().read_exact_at(&mut back[..10], 4000)?;
        ensure!(back[..10] == [9; 10], "what a debugger wrote");
    }
    Ok(())
}
