//! Pinned pages stay where they are when memory is taken back.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use anyhow::{Result, bail, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::mm::MapFlags;

use crate::support::{
    PAGE, bytes,
    faults::{self, VERY_SLOW},
    file_system::{FileSystem, drop_caches},
    open,
    region::Region,
    uring::{Uring, fd},
};

/// Which pages of the mapping are in memory.
fn resident(region: &Region) -> Result<Vec<bool>> {
    let mut pages = vec![0_u8; region.len() / PAGE];
    // SAFETY: The region is mapped, and there is a byte for each of its pages.
    let result = unsafe { libc::mincore(region.at(0).cast(), region.len(), pages.as_mut_ptr()) };
    ensure!(result == 0, "mincore: {}", io::Error::last_os_error());
    Ok(pages.iter().map(|page| page & 1 != 0).collect())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn pinned_pages_stay_cached_and_others_are_dropped() -> Result<()> {
    // What is mapped is not dropped: only the pins hold anything.
    while_pinned(|file, region| {
        let pages = region.len();
        drop(region);
        drop_caches()?;
        Ok(Region::file(file, 0, pages, MapFlags::SHARED)?)
    })
}

/// As under memory pressure: the pages are unmapped, and those that nobody holds are freed.
#[guest_test(device_arguments = faults::ARGUMENTS)]
fn reclaim_skips_pinned_pages() -> Result<()> {
    while_pinned(|_, region| {
        // SAFETY: The region is mapped, and its bytes stay what they are.
        let result =
            unsafe { libc::madvise(region.at(0).cast(), region.len(), libc::MADV_PAGEOUT) };
        ensure!(result == 0, "MADV_PAGEOUT: {}", io::Error::last_os_error());
        Ok(region)
    })
}

/// Pins some pages of a mapped file, has `take_back` take back what it can, and looks what is left.
fn while_pinned(take_back: impl FnOnce(&File, Region) -> Result<Region>) -> Result<()> {
    const PAGES: usize = 16;
    const PINNED: std::ops::Range<usize> = 5..8;
    let device = open()?;
    let content = bytes::random(1, PAGES * PAGE);
    let file_system = FileSystem::mount(content.clone())?;
    let file = file_system.open()?;
    let mut ring = Uring::new(1)?;
    let region = Region::file(&file, 0, PAGES * PAGE, MapFlags::SHARED)?;
    bytes::expect(&region.read(0..PAGES * PAGE)?, &content, "the file")?;
    let length = u32::try_from(PINNED.len() * PAGE)?;
    let write = opcode::Write::new(fd(device.file()), region.at(PINNED.start * PAGE), length)
        .offset(VERY_SLOW.start)
        .build();
    // SAFETY: The memory is only read by the device, and pinned while it does.
    unsafe { ring.submit(&[write]) }?;
    let region = take_back(&file, region)?;
    let in_flight = device.file_statistics()?.in_flight;
    let resident = resident(&region)?;
    if in_flight != 1 {
        bail!(
            "the device was done too early, so nothing was tested: {:?}",
            ring.wait(1)?
        );
    }
    for (page, resident) in resident.iter().enumerate() {
        ensure!(
            *resident == PINNED.contains(&page),
            "page {page} is {}in memory; pinned are {PINNED:?}",
            if *resident { "" } else { "not " }
        );
    }
    let completion = ring.wait(1)?[0];
    ensure!(completion.result == length.cast_signed(), "{completion:?}");
    let mut written = vec![0; length as usize];
    device.file().read_exact_at(&mut written, VERY_SLOW.start)?;
    let expected = &content[PINNED.start * PAGE..PINNED.end * PAGE];
    bytes::expect(&written, expected, "what the device read")
}
