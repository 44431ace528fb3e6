//! Every kind of memory as source and target of transfers.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    fs::MemfdFlags,
    io::Errno,
    mm::{MapFlags, ProtFlags},
};

use crate::{
    support::{
        MIB, PAGE, bytes,
        child::Child,
        errno,
        faults::{self, SLOW},
        fuse::{FileSystem, drop_caches},
        open, procfs,
        region::Region,
        uring::{self, Uring},
    },
    test,
};

/// Offset in device memory of the transfers of these tests.
const POSITION: u64 = 4 * MIB as u64 + 555;

/// Writes a range of the region to the device, and reads changed bytes back.
fn round_trip(region: &Region, range: std::ops::Range<usize>) -> Result<()> {
    let device = open()?;
    let length = range.len();
    let data = bytes::random(length as u64, region.len());
    region.write(0, &data)?;
    let what = format!("{range:#x?} of {:#x}", region.len());
    region
        .pwrite_all(device.file(), range.clone(), POSITION)
        .with_context(|| what.clone())?;
    let mut bytes = data[range.clone()].to_vec();
    let device_memory = format!("{what}: device memory");
    bytes::expect_at(device.file(), POSITION, &bytes, &device_memory)?;

    bytes.reverse();
    device.file().write_all_at(&bytes, POSITION)?;
    region
        .pread_exact(device.file(), range.clone(), POSITION)
        .with_context(|| what.clone())?;
    let mut expected = data;
    expected[range].copy_from_slice(&bytes);
    bytes::expect(&region.read(0..region.len())?, &expected, &what)
}

/// [`round_trip`] with ranges at and off the boundaries of its pages.
fn serves(region: &Region) -> Result<()> {
    let length = region.len();
    for range in [
        0..length,
        1..length - 1,
        length / 2 - 1..length / 2 + 1,
        PAGE - 1..PAGE + 1,
        length - 1..length,
    ] {
        round_trip(region, range)?;
    }
    Ok(())
}

#[guest_test]
fn anonymous_memory() -> Result<()> {
    serves(&Region::anonymous(50 * PAGE)?)
}

#[guest_test]
fn untouched_memory() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 20 * PAGE);
    device.file().write_all_at(&data, POSITION)?;
    let target = Region::anonymous(20 * PAGE)?;
    target.pread_exact(device.file(), 0..20 * PAGE, POSITION)?;
    bytes::expect(&target.read(0..20 * PAGE)?, &data, "what was read")?;
    let source = Region::anonymous(20 * PAGE)?;
    source.pwrite_all(device.file(), 0..20 * PAGE, POSITION)?;
    bytes::expect_at(
        device.file(),
        POSITION,
        &vec![0; 20 * PAGE],
        "what untouched memory holds",
    )
}

#[guest_test]
fn shared_anonymous_memory() -> Result<()> {
    serves(&Region::anonymous_with(50 * PAGE, MapFlags::SHARED)?)
}

#[guest_test]
fn transparent_huge_pages() -> Result<()> {
    let region = Region::transparent_huge(4 * MIB)?;
    region.write(0, &vec![1; 4 * MIB])?;
    let lines = procfs::smaps(region.address())?.context("the region is not in smaps")?;
    let huge = procfs::kilobytes(procfs::field(&lines, "AnonHugePages")?)?;
    if huge == 0 {
        return test::skip("the kernel allocated no transparent huge pages");
    }
    serves(&region)
}

/// A pool of huge pages (`MAP_HUGETLB`), for as long as this lives.
struct Reserved(String);

const RESERVE: &str = "/proc/sys/vm/nr_hugepages";

impl Reserved {
    fn new(count: usize) -> Result<Self> {
        let Ok(before) = fs::read_to_string(RESERVE) else {
            return test::skip("this kernel has no hugetlbfs");
        };
        let reserved = Self(before);
        fs::write(RESERVE, count.to_string()).context(RESERVE)?;
        let now: usize = fs::read_to_string(RESERVE)?
            .trim()
            .parse()
            .context(RESERVE)?;
        if now < count {
            return test::skip(format!("the kernel reserves {now} of {count} huge pages"));
        }
        Ok(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Err(error) = fs::write(RESERVE, &self.0) {
            eprintln!("{RESERVE}: {error}");
        }
    }
}

#[guest_test]
fn reserved_huge_pages() -> Result<()> {
    let _reserved = Reserved::new(4)?;
    for sharing in [MapFlags::PRIVATE, MapFlags::SHARED] {
        let region = Region::anonymous_with(4 * MIB, sharing | MapFlags::HUGETLB)
            .context("a mapping of huge pages")?;
        serves(&region)?;
        let device = open()?;
        region.pwrite_all(device.file(), 0..4 * MIB, POSITION)?;
        let counts = device.file_statistics()?;
        ensure!(
            counts.pages_pinned == 1024 && counts.segments <= 2,
            "two huge pages: {counts:?}"
        );
    }
    Ok(())
}

fn memory_file(length: usize) -> Result<File> {
    let file = File::from(rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC)?);
    file.set_len(length as u64)?;
    Ok(file)
}

#[guest_test]
fn memory_files() -> Result<()> {
    let length = 30 * PAGE;
    let file = memory_file(length)?;
    let region = Region::file(&file, 0, length, MapFlags::SHARED)?;
    serves(&region)?;
    // Bytes that arrive in the mapping are in the file.
    let device = open()?;
    let data = bytes::random(2, length - 100);
    device.file().write_all_at(&data, POSITION)?;
    region.pread_exact(device.file(), 50..length - 50, POSITION)?;
    bytes::expect_at(&file, 50, &data, "the file")
}

#[guest_test]
fn memory_beyond_the_end_of_its_file() -> Result<()> {
    let device = open()?;
    let file = memory_file(2 * PAGE)?;
    let region = Region::file(&file, 0, 6 * PAGE, MapFlags::SHARED)?;
    let behind = 3 * PAGE..4 * PAGE;
    let result = region.pread(device.file(), behind.clone(), 0)?;
    errno::expect(result, Errno::FAULT, "a read to memory beyond the end")?;
    let result = region.pwrite(device.file(), behind, 0)?;
    errno::expect(result, Errno::FAULT, "a write from memory beyond the end")?;
    let moved = region.pread(device.file(), PAGE..4 * PAGE, 0)??;
    ensure!(moved == PAGE, "{moved} bytes, one page is inside the file");
    round_trip(&Region::anonymous(PAGE)?, 0..PAGE)
}

#[guest_test]
fn pages_of_a_read_only_file_system_are_a_source() -> Result<()> {
    let device = open()?;
    let file = File::open("/usr/bin/dd")?;
    let mut content = vec![0; 15 * PAGE + 100];
    file.read_exact_at(&mut content, 0)?;
    for sharing in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let region = Region::file_with(&file, 0, 16 * PAGE, ProtFlags::READ, sharing)?;
        region.pwrite_all(device.file(), 0..content.len(), POSITION)?;
        bytes::expect_at(device.file(), POSITION, &content, "device memory")?;
        let result = region.pread(device.file(), 0..PAGE, 0)?;
        errno::expect(
            result,
            Errno::FAULT,
            "a read into pages of a read-only mapping",
        )?;
    }
    Ok(())
}

#[guest_test]
fn private_file_mappings_are_copied() -> Result<()> {
    let device = open()?;
    let length = 10 * PAGE;
    let file = memory_file(length)?;
    let content = bytes::random(3, length);
    file.write_all_at(&content, 0)?;
    let region = Region::file(&file, 0, length, MapFlags::PRIVATE)?;
    // Some of the pages are mapped already.
    region.read(0..2 * PAGE)?;
    region.write(PAGE, &content[PAGE..PAGE + 1])?;
    let data = bytes::random(4, length - 2);
    device.file().write_all_at(&data, POSITION)?;
    region.pread_exact(device.file(), 1..length - 1, POSITION)?;
    bytes::expect(&region.read(1..length - 1)?, &data, "the mapping")?;
    bytes::expect_at(&file, 0, &content, "the file")
}

#[guest_test]
fn shared_file_mappings_reach_the_file_system() -> Result<()> {
    let device = open()?;
    let length = 40 * PAGE;
    let content = bytes::random(5, length);
    let file_system = FileSystem::mount(content.clone())?;
    let file = file_system.open()?;
    let region = Region::file(&file, 0, length, MapFlags::SHARED)?;

    region.pwrite_all(device.file(), 0..length, POSITION)?;
    bytes::expect_at(device.file(), POSITION, &content, "device memory")?;

    let data = bytes::random(6, 20 * PAGE + 11);
    device.file().write_all_at(&data, POSITION)?;
    let range = 3 * PAGE + 100..23 * PAGE + 111;
    region.pread_exact(device.file(), range.clone(), POSITION)?;
    let mut expected = content;
    expected[range].copy_from_slice(&data);
    region.sync()?;
    bytes::expect(&file_system.stored(), &expected, "what was written back")?;

    drop(region);
    drop_caches()?;
    bytes::expect_at(&file, 0, &expected, "the file, read again")?;
    drop(file);
    let file_system = file_system.remount()?;
    let file = file_system.open()?;
    bytes::expect_at(&file, 0, &expected, "the file, mounted again")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn pages_cleaned_during_a_transfer_become_dirty_again() -> Result<()> {
    let device = open()?;
    let length = 8 * PAGE;
    let data = bytes::random(7, length);
    device.map(SLOW.start, length)?.write(0, &data)?;
    let file_system = FileSystem::mount(bytes::random(8, length))?;
    let file = file_system.open()?;
    let region = Region::file(&file, 0, length, MapFlags::SHARED)?;
    let mut ring = Uring::new(1)?;
    let read = uring::read(device.file(), &region, 0..length, SLOW.start);
    // SAFETY: The region lives until the request has completed, below.
    unsafe { ring.submit(&[read]) }?;
    // This cleans the pages before the device writes to them.
    region.sync()?;
    let early = file_system.stored() != data;
    ring.wait(1)?;
    ensure!(
        early,
        "the device was done before the pages were cleaned: nothing was tested"
    );
    // No CPU stores to the pages: only the driver knows that they have changed.
    drop(region);
    file.sync_all().context("fsync")?;
    bytes::expect(&file_system.stored(), &data, "what was written back")?;
    drop_caches()?;
    bytes::expect_at(&file, 0, &data, "the file, read again")?;
    drop(file);
    let file_system = file_system.remount()?;
    let file = file_system.open()?;
    bytes::expect_at(&file, 0, &data, "the file, mounted again")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn fork_during_a_transfer() -> Result<()> {
    let device = open()?;
    // The device writes neither the first nor the last bytes of the pages.
    let start = 100;
    let data = bytes::random(9, 3 * PAGE - 2 * start);
    device.map(SLOW.start, 3 * PAGE)?.write(0, &data)?;
    let region = Region::anonymous(3 * PAGE)?;
    region.write(0, &[0x11; 3 * PAGE])?;
    let mut ring = Uring::new(1)?;
    let range = start..start + data.len();
    let read = uring::read(device.file(), &region, range, SLOW.start);
    // SAFETY: The region lives until the request has completed, below.
    unsafe { ring.submit(&[read]) }?;
    let (reader, writer) = rustix::pipe::pipe()?;
    let child = Child::fork(|| {
        region.write(0, &[2])?;
        region.write(start + PAGE, &[2; 10])?;
        rustix::io::read(&reader, &mut [0])?;
        ensure!(
            region.read(0..1)? == [2],
            "the parent's store reached the child"
        );
        ensure!(
            region.read(start + PAGE..start + PAGE + 10)? == [2; 10],
            "the device wrote to a page of the child"
        );
        Ok(())
    })?;
    // A store to a page that parent and child share copies it for one of the two. The pinned page
    // has to stay the parent's.
    region.write(0, &[4])?;
    region.write(3 * PAGE - 1, &[4])?;
    ring.wait(1)?;
    rustix::io::write(&writer, &[0])?;
    child.succeed()?;
    bytes::expect(
        &region.read(start..start + data.len())?,
        &data,
        "the parent's buffer",
    )?;
    ensure!(region.read(0..1)? == [4], "the parent's store is lost");
    Ok(())
}
