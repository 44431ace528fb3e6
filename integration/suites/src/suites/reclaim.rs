//! Pinned pages stay in memory when the kernel reclaims others.

use std::{fs::File, io};

use anyhow::{Result, bail, ensure};
use guest_suites_macros::guest_test;
use rustix::mm::MapFlags;

use crate::support::{
    PAGE, bytes,
    faults::{self, VERY_SLOW},
    fuse::{FileSystem, drop_caches},
    open,
    region::Region,
    uring::{self, Uring},
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
    // Mapped pages are not dropped: without the mapping, only the pins hold them.
    while_pinned(|file, region| {
        let pages = region.len();
        drop(region);
        drop_caches()?;
        Ok(Region::file(file, 0, pages, MapFlags::SHARED)?)
    })
}

/// As under memory pressure: the pages are unmapped, and those without further references are
/// freed.
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

/// Pins some pages of a mapped file, has `reclaim` free what it can, and checks which pages are
/// left.
fn while_pinned(reclaim: impl FnOnce(&File, Region) -> Result<Region>) -> Result<()> {
    const PAGES: usize = 16;
    const PINNED: std::ops::Range<usize> = 5..8;
    let device = open()?;
    let content = bytes::random(1, PAGES * PAGE);
    let file_system = FileSystem::mount(content.clone())?;
    let file = file_system.open()?;
    let mut ring = Uring::new(1)?;
    let region = Region::file(&file, 0, PAGES * PAGE, MapFlags::SHARED)?;
    bytes::expect(&region.read(0..PAGES * PAGE)?, &content, "the file")?;
    let pinned = PINNED.start * PAGE..PINNED.end * PAGE;
    let write = uring::write(device.file(), &region, pinned.clone(), VERY_SLOW.start);
    // SAFETY: The device only reads the memory, which is pinned meanwhile.
    unsafe { ring.submit(&[write]) }?;
    let region = reclaim(&file, region)?;
    let in_flight = device.file_statistics()?.in_flight;
    let resident = resident(&region)?;
    if in_flight != 1 {
        bail!(
            "the request completed too early, so nothing was tested: {:?}",
            ring.wait_raw(1)?
        );
    }
    for (page, resident) in resident.iter().enumerate() {
        ensure!(
            *resident == PINNED.contains(&page),
            "page {page} is {}in memory; pinned are {PINNED:?}",
            if *resident { "" } else { "not " }
        );
    }
    ring.wait(1)?;
    let expected = &content[pinned];
    bytes::expect_at(
        device.file(),
        VERY_SLOW.start,
        expected,
        "what the device read",
    )
}
