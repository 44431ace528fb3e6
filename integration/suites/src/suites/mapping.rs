//! Device memory mapped into processes: the BAR itself.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags},
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use vdma::Device;

use crate::support::{MIB, NODE, PAGE, bytes, child::Child, errno, open, procfs, region::Region};

#[guest_test]
fn reads_see_stores() -> Result<()> {
    let device = open()?;
    let offset = 2 * MIB as u64;
    let mapping = device.map(offset, 3 * PAGE)?;
    let data = bytes::random(1, 3 * PAGE);
    mapping.write(0, &data)?;
    let mut back = vec![0; data.len()];
    device.file().read_exact_at(&mut back, offset)?;
    bytes::expect(&back, &data, "bytes that were stored")?;
    mapping.store(8, 0x0123_4567_89ab_cdef_u64)?;
    mapping.store(4094, 0xbeef_u16)?;
    mapping.store(4096, 0x7654_3210_u32)?;
    device.file().read_exact_at(&mut back, offset)?;
    let mut expected = data;
    expected[8..16].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_le_bytes());
    expected[4094..4096].copy_from_slice(&0xbeef_u16.to_le_bytes());
    expected[4096..4100].copy_from_slice(&0x7654_3210_u32.to_le_bytes());
    bytes::expect(&back, &expected, "words")
}

#[guest_test]
fn loads_see_writes() -> Result<()> {
    let device = open()?;
    let offset = 7 * PAGE as u64;
    let mapping = device.map(offset, 2 * PAGE)?;
    for seed in 0..10 {
        let data = bytes::random(seed, 2 * PAGE);
        device.file().write_all_at(&data, offset)?;
        let mut back = vec![0; data.len()];
        mapping.read(0, &mut back)?;
        bytes::expect(&back, &data, "what was written")?;
        let word = u64::from_le_bytes(data[16..24].try_into()?);
        ensure!(mapping.load::<u64>(16)? == word, "a word");
    }
    Ok(())
}

#[guest_test]
fn all_of_device_memory_can_be_mapped() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let whole = device.map(0, usize::try_from(size)?)?;
    for offset in [0, size / 2 - 1, size / 2, size - 1] {
        let byte = u8::try_from(offset % 251)?;
        device.file().write_all_at(&[byte], offset)?;
        let seen: u8 = whole.load(usize::try_from(offset)?)?;
        ensure!(seen == byte, "{seen} instead of {byte} at {offset:#x}");
    }
    let last = device.map(size - PAGE as u64, PAGE)?;
    last.store(PAGE - 1, 0x42_u8)?;
    ensure!(
        whole.load::<u8>(usize::try_from(size)? - 1)? == 0x42,
        "the last byte"
    );
    Ok(())
}

#[guest_test]
fn mappings_of_one_offset_share_memory() -> Result<()> {
    let (one, other) = (open()?, open()?);
    let first = one.map(MIB as u64, 2 * PAGE)?;
    let second = other.map((MIB + PAGE) as u64, PAGE)?;
    for value in 0..100_u32 {
        first.store(PAGE + 12, value)?;
        ensure!(second.load::<u32>(12)? == value, "another value");
        second.store(0, !value)?;
        ensure!(first.load::<u32>(PAGE)? == !value, "another value");
    }
    Ok(())
}

#[guest_test]
fn proc_maps_and_smaps_show_a_mapping() -> Result<()> {
    let device = open()?;
    let offset = 5 * PAGE;
    let mapping = device.map(offset as u64, 4 * PAGE)?;
    let lines = procfs::smaps(mapping.address())?.context("the mapping is not in smaps")?;
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    ensure!(header[1] == "rw-s", "rights {}", header[1]);
    ensure!(
        usize::from_str_radix(header[2], 16)? == offset,
        "offset {}",
        header[2]
    );
    ensure!(header.last() == Some(&NODE), "{}", lines[0]);
    let flags: Vec<&str> = procfs::field(&lines, "VmFlags")?
        .split_whitespace()
        .collect();
    for flag in ["io", "pf", "de", "dd", "sh"] {
        ensure!(flags.contains(&flag), "{flag} is not among {flags:?}");
    }
    let size = procfs::kilobytes(procfs::field(&lines, "Size")?)?;
    ensure!(size == 4 * PAGE, "{size} bytes");
    Ok(())
}

/// Maps a range and unmaps it again; returns the result of the call.
fn try_map(offset: u64, length: usize, flags: MapFlags) -> Result<std::io::Result<usize>> {
    let device = open()?;
    Ok(Region::file(device.file(), offset, length, flags).map(|region| region.len()))
}

#[guest_test]
fn private_mappings_are_einval() -> Result<()> {
    let result = try_map(0, PAGE, MapFlags::PRIVATE)?;
    errno::expect(result, Errno::INVAL, "a private mapping")?;
    // A read-only one is refused too: it could be made writable later.
    let device = open()?;
    let result = Region::file_with(device.file(), 0, PAGE, ProtFlags::READ, MapFlags::PRIVATE)
        .map(|region| region.len());
    errno::expect(result, Errno::INVAL, "a private mapping for reading")
}

#[guest_test]
fn ranges_beyond_the_end_are_einval() -> Result<()> {
    let size = open()?.info().memory_size;
    let page = PAGE as u64;
    for (offset, length) in [
        (size, PAGE),
        (size - page, 2 * PAGE),
        (0, usize::try_from(size)? + PAGE),
        (size + 100 * page, PAGE),
        (1 << 40, PAGE),
        (1 << 62, PAGE),
    ] {
        let result = try_map(offset, length, MapFlags::SHARED)?;
        let what = format!("a mapping of {length:#x} bytes at {offset:#x}");
        errno::expect(result, Errno::INVAL, &what)?;
    }
    Ok(())
}

#[guest_test]
fn a_read_only_file_maps_for_reading() -> Result<()> {
    let device = open()?;
    let data = bytes::random(3, PAGE);
    device.file().write_all_at(&data, 0)?;
    let file = File::open(NODE)?;
    let region = Region::file_with(&file, 0, PAGE, ProtFlags::READ, MapFlags::SHARED)?;
    bytes::expect(&region.read(0..PAGE)?, &data, "what was loaded")?;
    let result = region.protect(MprotectFlags::READ | MprotectFlags::WRITE);
    let refused = result
        .as_ref()
        .is_err_and(|error| error.downcast_ref() == Some(&Errno::ACCESS));
    ensure!(refused, "making it writable returned {result:?}");
    Ok(())
}

#[guest_test]
fn read_only_mappings_refuse_stores() -> Result<()> {
    let child = Child::fork(|| {
        let device = open()?;
        let region = Region::file_with(device.file(), 0, PAGE, ProtFlags::READ, MapFlags::SHARED)?;
        region.write(0, &[1])
    })?;
    child.die_of(Signal::SEGV)
}

#[guest_test]
fn growing_a_mapping_is_refused() -> Result<()> {
    let device = open()?;
    let mut region = Region::file(device.file(), 0, 2 * PAGE, MapFlags::SHARED)?;
    region.write(0, b"before")?;
    errno::expect(region.remap(3 * PAGE), Errno::FAULT, "growing a mapping")?;
    ensure!(region.len() == 2 * PAGE);
    ensure!(
        region.read(0..6)? == b"before",
        "the contents of the mapping have changed"
    );
    region.remap(PAGE).context("shrinking a mapping")?;
    ensure!(
        region.read(0..6)? == b"before",
        "the contents of the mapping have changed"
    );
    errno::expect(
        region.remap(2 * PAGE),
        Errno::FAULT,
        "growing a mapping again",
    )
}

#[guest_test]
fn moving_a_mapping_keeps_its_memory() -> Result<()> {
    let device = open()?;
    let data = bytes::random(4, 2 * PAGE);
    device.file().write_all_at(&data, 0)?;
    let mut region = Region::file(device.file(), 0, 2 * PAGE, MapFlags::SHARED)?;
    region.relocate()?;
    bytes::expect(&region.read(0..2 * PAGE)?, &data, "the moved mapping")?;
    region.write(PAGE, b"moved")?;
    bytes::expect_at(
        device.file(),
        PAGE as u64,
        b"moved",
        "a store to the moved mapping",
    )?;
    let lines = procfs::smaps(region.address())?.context("the mapping is not in smaps")?;
    let flags = procfs::field(&lines, "VmFlags")?;
    ensure!(flags.contains("pf") && flags.contains("io"), "{flags}");
    Ok(())
}

#[guest_test]
fn a_hole_in_a_mapping_keeps_the_rest() -> Result<()> {
    let device = open()?;
    let pages = 9;
    let data = bytes::random(5, pages * PAGE);
    device.file().write_all_at(&data, 0)?;
    let whole = Region::file(device.file(), 0, pages * PAGE, MapFlags::SHARED)?;
    let (front, mut back) = whole.split(4 * PAGE)?;
    back.cut_front(PAGE)?;
    bytes::expect(
        &front.read(0..4 * PAGE)?,
        &data[..4 * PAGE],
        "the part before the hole",
    )?;
    bytes::expect(
        &back.read(0..4 * PAGE)?,
        &data[5 * PAGE..],
        "the part after the hole",
    )?;
    drop(front);
    bytes::expect(
        &back.read(0..4 * PAGE)?,
        &data[5 * PAGE..],
        "the part that is left",
    )?;
    back.write(0, b"still")?;
    bytes::expect_at(
        device.file(),
        5 * PAGE as u64,
        b"still",
        "a store through the mapping",
    )?;
    Ok(())
}

#[guest_test]
fn fork_shares_a_mapping() -> Result<()> {
    let device = open()?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(0, 1_u32)?;
    let child = Child::fork(|| {
        ensure!(
            mapping.load::<u32>(0)? == 1,
            "the child reads another value"
        );
        mapping.store(0, 2_u32)?;
        // Unmapping in the child does not affect the mapping of the parent.
        drop(mapping);
        Ok(())
    })?;
    child.succeed()?;
    let seen: u32 = open()?.map(0, PAGE)?.load(0)?;
    ensure!(seen == 2, "the store of the child is lost");
    Ok(())
}

#[guest_test]
fn a_mapping_outlives_its_file() -> Result<()> {
    let mapping = open()?.map(0, PAGE)?;
    mapping.store(100, 0x1234_5678_u32)?;
    bytes::expect_at(
        open()?.file(),
        100,
        &0x1234_5678_u32.to_le_bytes(),
        "a store through the mapping",
    )?;
    Ok(())
}

/// As the node of a container, for example: its file system can be unmounted, but not while a
/// mapping still uses the node.
#[guest_test]
fn a_mapping_keeps_the_file_system_of_its_node_mounted() -> Result<()> {
    const MOUNT: &str = "/root/nodes";
    let number = fs::metadata(NODE).context(NODE)?.rdev();
    fs::create_dir_all(MOUNT)?;
    mount(
        "nodes",
        MOUNT,
        "tmpfs",
        MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .context("mount")?;
    let path = Path::new(MOUNT).join("vdma");
    mknodat(
        CWD,
        &path,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        number,
    )
    .context("mknod")?;
    let other = Device::open(&path)?;
    let device = open()?;
    let mapping = device.map(0, PAGE)?;
    drop(other);
    mapping.store(0, 0x55_u8)?;
    errno::expect(
        unmount(MOUNT, UnmountFlags::empty()).map_err(std::io::Error::from),
        Errno::BUSY,
        "unmounting the file system while the device is mapped",
    )?;
    drop((mapping, device));
    unmount(MOUNT, UnmountFlags::empty()).context("umount")?;
    let mapping = open()?.map(0, PAGE)?;
    Ok(mapping.store(0, 0xaa_u8)?)
}
