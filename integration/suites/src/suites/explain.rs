//! `explain`: all addresses of a page, and the entries into which pages are merged for the device.

use std::{fs::File, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;
use vdma::{
    ExplainedPage,
    protocol::{PAGE_ANONYMOUS, PAGE_HUGE},
};

use crate::support::{MIB, PAGE, errno, open, procfs, program, region::Region};

/// The frame of the page at `address`, from `/proc/self/pagemap`.
fn frame(address: u64) -> Result<u64> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut entry = [0; 8];
    pagemap.read_exact_at(&mut entry, address / PAGE as u64 * 8)?;
    let entry = u64::from_le_bytes(entry);
    ensure!(
        entry >> 63 == 1,
        "the page at {address:#x} is not in memory"
    );
    Ok(entry & ((1 << 55) - 1))
}

/// What the driver explains of a range of the region.
fn explain(
    region: &Region,
    start: usize,
    length: usize,
    offset: u64,
) -> Result<Vec<ExplainedPage>> {
    let device = open()?;
    // SAFETY: The range is inside the region, which nothing else accesses meanwhile.
    let memory = unsafe { std::slice::from_raw_parts_mut(region.at(start), length) };
    Ok(device.explain(memory, offset)?)
}

#[guest_test]
fn addresses_match_pagemap() -> Result<()> {
    let region = Region::anonymous(10 * PAGE)?;
    region.write(0, &[1; 10 * PAGE])?;
    let (start, length) = (1000, 7 * PAGE);
    let pages = explain(&region, start, length, 5555)?;
    ensure!(pages.len() == 8, "{} pages", pages.len());
    let mut at = start;
    for page in &pages {
        let address = region.at(at) as u64;
        ensure!(
            page.address == address,
            "{page:x?}, and not at {address:#x}"
        );
        let physical = frame(address)? * PAGE as u64 + address % PAGE as u64;
        ensure!(
            page.physical_address == physical,
            "{page:x?}, and pagemap says {physical:#x}"
        );
        // Without VIRTIO_F_ACCESS_PLATFORM the device is given physical addresses.
        ensure!(page.bus_address == physical, "{page:x?}");
        ensure!(
            page.kernel_address >> 63 == 1,
            "{page:x?} is no address of the kernel"
        );
        ensure!(
            page.kernel_address % PAGE as u64 == physical % PAGE as u64,
            "{page:x?}"
        );
        ensure!(page.offset == 5555 + (at - start) as u64, "{page:x?}");
        ensure!(page.flags == PAGE_ANONYMOUS, "{page:x?}");
        at += page.length as usize;
    }
    ensure!(at == start + length, "{} bytes", at - start);
    // The kernel's direct map preserves distances.
    for pair in pages.windows(2) {
        ensure!(
            pair[1].kernel_address.wrapping_sub(pair[0].kernel_address)
                == pair[1]
                    .physical_address
                    .wrapping_sub(pair[0].physical_address),
            "{pair:x?}"
        );
    }
    Ok(())
}

#[guest_test]
fn entries_are_contiguous_frames() -> Result<()> {
    let region = Region::anonymous(64 * PAGE)?;
    region.write(0, &[1; 64 * PAGE])?;
    let pages = explain(&region, 0, 64 * PAGE, 0)?;
    let mut entry = 0;
    for pair in pages.windows(2) {
        let follows = pair[1].physical_address == pair[0].physical_address + PAGE as u64;
        entry += u32::from(!follows);
        ensure!(pair[1].entry == entry, "{pair:x?}");
    }
    Ok(())
}

#[guest_test]
fn huge_pages_are_one_entry() -> Result<()> {
    let region = Region::transparent_huge(4 * MIB)?;
    region.write(0, &vec![1; 4 * MIB])?;
    let pages = explain(&region, 100, 2 * MIB - 200, 0)?;
    ensure!(pages.len() == 512, "{} pages", pages.len());
    ensure!(
        pages[0].flags & PAGE_HUGE != 0,
        "the page is not huge: {:x?}",
        pages[0]
    );
    ensure!(
        pages.iter().all(|page| page.entry == 0),
        "several entries for one huge page"
    );
    Ok(())
}

#[guest_test]
fn explain_leaves_nothing_pinned() -> Result<()> {
    let before = procfs::pinned_pages()?;
    let region = Region::anonymous(4 * PAGE)?;
    region.write(0, &[1; 4 * PAGE])?;
    explain(&region, 0, 4 * PAGE, 0)?;
    ensure!(procfs::pinned_pages()? == before, "pages stay pinned");
    let device = open()?;
    errno::expect_vdma(device.explain(&mut [], 0), Errno::INVAL, "no memory")?;
    region.protect_range(PAGE..2 * PAGE, rustix::mm::MprotectFlags::empty())?;
    // SAFETY: Only the address of the slice is used; its bytes are not accessed.
    let memory = unsafe { std::slice::from_raw_parts_mut(region.at(PAGE), PAGE) };
    errno::expect_vdma(
        device.explain(memory, 0),
        Errno::FAULT,
        "memory without access rights",
    )?;
    ensure!(
        procfs::pinned_pages()? == before,
        "pages stay pinned after a failure"
    );
    Ok(())
}

#[guest_test]
fn vdma_explain_shows_a_table() -> Result<()> {
    for memory in ["anonymous", "huge", "shared"] {
        let arguments = [
            "vdma", "explain", "--length", "40K", "--skew", "77", "--memory", memory,
        ];
        let text = program::run(&arguments)?;
        ensure!(text.starts_with("VMA: ") && text.contains("rw-"), "{text}");
        ensure!(text.contains("11 pages"), "{text}");
    }
    std::fs::write("/tmp/explained", vec![1; 3 * PAGE])?;
    let text = program::run(&[
        "vdma",
        "explain",
        "--length",
        "8K",
        "--memory",
        "file",
        "--file",
        "/tmp/explained",
        "-o",
        "json",
    ])?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(
        json["pages"].as_array().context("no pages")?.len() == 2,
        "{json}"
    );
    Ok(())
}
