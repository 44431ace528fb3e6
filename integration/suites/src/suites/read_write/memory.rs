//! Memory that cannot be a source or a target.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::Errno,
    mm::{MapFlags, MprotectFlags},
};

use crate::support::{
    MIB, PAGE, bytes, errno, open,
    region::{self, Region},
};

/// Fails unless a plain transfer still works.
fn still_works() -> Result<()> {
    let device = open()?;
    let data = bytes::random(99, 3 * PAGE);
    bytes::round_trip(device.file(), 12_345, &data, "the transfer afterwards")
}

#[guest_test]
fn a_bad_pointer_is_efault() -> Result<()> {
    let device = open()?;
    let hole = {
        let mut region = Region::anonymous(4 * PAGE)?;
        let address = region.at(0);
        region.cut_front(4 * PAGE)?;
        address
    };
    let kernel = 0xffff_8880_0000_0000_usize as *mut u8;
    let not_canonical = 0x8000_0000_0000_0000_usize as *mut u8;
    for (address, what) in [
        (std::ptr::null_mut(), "null"),
        (hole, "a hole"),
        (hole.wrapping_add(17), "an odd address in a hole"),
        (kernel, "a kernel address"),
        (not_canonical, "a non-canonical address"),
    ] {
        for length in [1, 100, 3 * PAGE] {
            // SAFETY: Nothing is mapped there: no mapping was made since the hole was.
            let result = unsafe { region::pread(device.file(), address, length, 0) };
            errno::expect(
                result,
                Errno::FAULT,
                &format!("a read of {length} bytes to {what}"),
            )?;
            let result = region::pwrite(device.file(), address, length, 0);
            errno::expect(
                result,
                Errno::FAULT,
                &format!("a write of {length} from {what}"),
            )?;
        }
    }
    still_works()
}

#[guest_test]
fn bad_memory_behind_good_is_short() -> Result<()> {
    let device = open()?;
    for good_pages in [1, 2, 5, 300] {
        let good = good_pages * PAGE;
        let position = 40_000;
        let data = bytes::random(good as u64, good + 3 * PAGE);
        device.file().write_all_at(&data, position)?;
        let mut buffer = Region::anonymous(good + 2 * PAGE)?;
        buffer.cut_back(good)?;
        let start = PAGE - 100;
        // SAFETY: The region is this test's own, and nothing is mapped behind it: no mapping was
        // made since its end was unmapped.
        let moved =
            unsafe { region::pread(device.file(), buffer.at(start), good + PAGE, position) }
                .with_context(|| format!("a read into {good_pages} pages"))?;
        let most = good - start;
        ensure!(
            (1..=most).contains(&moved),
            "{moved} bytes read into {most} that are mapped"
        );
        bytes::expect(
            &buffer.read(start..start + moved)?,
            &data[..moved],
            "the transferred part",
        )?;

        let source = bytes::random(7, good);
        buffer.write(0, &source)?;
        let moved = region::pwrite(device.file(), buffer.at(start), good + PAGE, position)
            .with_context(|| format!("a write from {good_pages} pages"))?;
        ensure!(
            (1..=most).contains(&moved),
            "{moved} bytes written from {most} that are mapped"
        );
        let mut back = vec![0; data.len()];
        device.file().read_exact_at(&mut back, position)?;
        bytes::expect(
            &back[..moved],
            &source[start..start + moved],
            "the transferred part",
        )?;
        bytes::expect(
            &back[moved..],
            &data[moved..],
            "device memory after the transferred part",
        )?;
    }
    still_works()
}

#[guest_test]
fn read_only_memory_is_a_source_only() -> Result<()> {
    let device = open()?;
    let data = bytes::random(31, 3 * PAGE);
    let buffer = Region::anonymous(data.len())?;
    buffer.write(0, &data)?;
    buffer.protect(MprotectFlags::READ)?;
    buffer.pwrite_all(device.file(), 0..data.len(), 50)?;
    bytes::expect_at(device.file(), 50, &data, "what read-only memory held")?;

    device.file().write_all_at(&vec![0; data.len()], 50)?;
    let result = buffer.pread(device.file(), 0..data.len(), 50)?;
    errno::expect(result, Errno::FAULT, "a read into read-only memory")?;
    bytes::expect(&buffer.read(0..data.len())?, &data, "read-only memory")?;

    // The kernel's zero page must not be written to.
    let zeroes = Region::anonymous(PAGE)?;
    zeroes.read(0..1)?;
    zeroes.pread_exact(device.file(), 0..PAGE, 50 + PAGE as u64)?;
    device.file().write_all_at(&data, 50)?;
    zeroes.pread_exact(device.file(), 0..PAGE, 50)?;
    let others = Region::anonymous(PAGE)?;
    bytes::expect(&others.read(0..PAGE)?, &[0; PAGE], "fresh memory")?;

    buffer.protect(MprotectFlags::empty())?;
    let result = buffer.pwrite(device.file(), 0..PAGE, 0)?;
    errno::expect(
        result,
        Errno::FAULT,
        "a write from memory without access rights",
    )?;
    still_works()
}

#[guest_test]
fn mapped_device_memory_as_a_buffer_is_efault() -> Result<()> {
    let device = open()?;
    let mapping = Region::file(device.file(), 0, 4 * PAGE, MapFlags::SHARED)?;
    let result = mapping.pread(device.file(), 0..PAGE, MIB as u64)?;
    errno::expect(result, Errno::FAULT, "a read into the mapped BAR")?;
    let result = mapping.pwrite(device.file(), 1..PAGE, MIB as u64)?;
    errno::expect(result, Errno::FAULT, "a write from the mapped BAR")?;
    still_works()
}
