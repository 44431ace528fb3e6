//! Parameters of the module.

use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;
use vdma::protocol::PAGE_BOUNCED;

use crate::support::{
    KIB, MIB, PAGE,
    batch::Batch,
    bytes,
    driver::{self, Reloaded},
    errno, faults, open, program,
    region::Region,
    uring::Uring,
};

/// A device that flips a bit in what it reads from a range of its memory.
const FLIPPING: &[&str] = &[
    "--fault=flip=1,op=read,range=8M+1M",
    "--fault=flip=1,op=read-crc32c,range=8M+1M",
];

#[guest_test(memory_mib = 5120, timeout = 120)]
fn memory_beyond_the_dma_mask_is_bounced() -> Result<()> {
    high_memory_is_bounced()
}

#[guest_test(memory_mib = 5120, dma_api, timeout = 120)]
fn memory_beyond_the_dma_mask_is_bounced_with_the_dma_api() -> Result<()> {
    high_memory_is_bounced()
}

/// The guest has memory above 4 GiB, which is where the kernel allocates from first.
fn high_memory_is_bounced() -> Result<()> {
    let _driver = Reloaded::with(&["dma_bits=32"])?;
    let device = open()?;
    ensure!(device.info().dma_bits == 32, "{:?}", device.info());
    transfers_work()?;
    let statistics = device.device_statistics()?;
    ensure!(
        statistics.pages_bounced > 0,
        "nothing was bounced: {statistics:?}"
    );
    let mut memory = vec![1; 20 * PAGE];
    let pages = device.explain(&mut memory, 0)?;
    let high = pages.iter().filter(|page| page.physical_address >> 32 != 0);
    let bounced = pages.iter().filter(|page| page.flags & PAGE_BOUNCED != 0);
    ensure!(
        high.clone().count() > 0,
        "no page of {} is above 4 GiB",
        pages.len()
    );
    ensure!(
        high.eq(bounced),
        "the bounced pages are not those above 4 GiB: {pages:x?}"
    );
    Ok(())
}

/// The pages that take the place of others are copied back as far as the device has answered for:
/// the rest of them are not its data.
#[guest_test(memory_mib = 5120, device_arguments = faults::ARGUMENTS, timeout = 120)]
fn memory_that_is_bounced_keeps_what_the_device_did_not_write() -> Result<()> {
    const LENGTH: usize = 20 * PAGE;
    let _driver = Reloaded::with(&["dma_bits=32"])?;
    let device = open()?;
    let region = Region::anonymous(LENGTH)?;
    let before = bytes::random(7, LENGTH);
    for (position, covered) in [
        (faults::IO_ERROR, 0),
        (faults::LENGTH_ZERO, 0),
        (faults::SHORT, LENGTH / 2),
    ] {
        region.write(0, &before)?;
        let result = region.pread(device.file(), 0..LENGTH, position)?;
        let moved = result.unwrap_or(0);
        ensure!(
            moved == covered,
            "{moved} bytes of {covered} at {position:#x}"
        );
        bytes::expect(
            &region.read(covered..LENGTH)?,
            &before[covered..],
            &format!("memory that was not read to, at {position:#x}"),
        )?;
    }
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.pages_bounced > 0,
        "nothing was bounced: {statistics:?}"
    );
    Ok(())
}

/// With `VIRTIO_F_ACCESS_PLATFORM`, bit 33, virtio maps buffers through the DMA API.
#[guest_test(dma_api)]
fn the_dma_api_is_used_with_access_platform() -> Result<()> {
    const ACCESS_PLATFORM: usize = 33;
    let features = std::fs::read_to_string("/sys/class/misc/vdma0/device/features")?;
    ensure!(
        features.as_bytes().get(ACCESS_PLATFORM) == Some(&b'1'),
        "features {features}"
    );
    transfers_work()
}

/// Makes transfers of all kinds and compares their data.
fn transfers_work() -> Result<()> {
    let device = open()?;
    for (seed, length, offset) in [(1, 1, 0), (2, 5000, 77), (3, 3 * MIB + 1, 4095)] {
        let data = bytes::random(seed, length);
        bytes::round_trip(device.file(), offset, &data, "what was read")?;
    }
    let batch = Batch::consecutive(64, KIB, 0);
    let data = bytes::random(4, batch.total());
    device.file().write_all_at(&data, 0)?;
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::new(64)?;
    // SAFETY: The region lives until all requests have completed.
    unsafe { ring.run(&batch.reads(&device, &region)) }?;
    bytes::expect(
        &region.read(0..batch.total())?,
        &data,
        "what was read at once",
    )?;
    let mut copied = vec![0; data.len()];
    device.copy(&*data, &mut *copied)?;
    bytes::expect(&copied, &data, "what was copied")
}

#[guest_test]
fn nothing_is_bounced_by_default() -> Result<()> {
    transfers_work()?;
    let statistics = open()?.device_statistics()?;
    ensure!(statistics.pages_bounced == 0, "{statistics:?}");
    Ok(())
}

#[guest_test]
fn invalid_dma_bits_are_refused() -> Result<()> {
    for bits in ["0", "31", "65"] {
        driver::unload()?;
        let loaded = program::run(&["modprobe", "vdma", &format!("dma_bits={bits}")]);
        let bound = driver::bound()?;
        driver::unload()?;
        driver::load()?;
        // The module loads, but does not bind to the device.
        loaded?;
        ensure!(bound.is_empty(), "a device is bound with dma_bits={bits}");
    }
    Ok(())
}

#[guest_test(device_arguments = FLIPPING)]
fn verification_finds_flipped_bits() -> Result<()> {
    let offset = 8 * MIB as u64;
    let data = bytes::random(5, 3 * PAGE);
    {
        let device = open()?;
        device.file().write_all_at(&data, offset)?;
        let mut back = vec![0; data.len()];
        device.file().read_exact_at(&mut back, offset)?;
        ensure!(back != data, "the device flips no bits");
    }
    let _driver = Reloaded::with(&["verify=1"])?;
    let device = open()?;
    let mut back = vec![0; data.len()];
    let result = device.file().read_at(&mut back, offset);
    errno::expect(result, Errno::IO, "a read with a flipped bit")?;
    device.file().write_all_at(&data, 0)?;
    device.file().read_exact_at(&mut back, 0)?;
    bytes::expect(&back, &data, "a read without a flipped bit")
}

#[guest_test]
fn verification_accepts_correct_data() -> Result<()> {
    let _driver = Reloaded::with(&["verify=1"])?;
    transfers_work()?;
    let statistics = open()?.device_statistics()?;
    ensure!(
        statistics.verified > 60 && statistics.failed == 0,
        "{statistics:?}"
    );
    Ok(())
}

#[guest_test]
fn small_transfers_go_through_the_bar() -> Result<()> {
    let _driver = Reloaded::with(&["inline_bytes=4096"])?;
    let device = open()?;
    let before = device.file_statistics()?;
    let data = bytes::random(6, 4096);
    for length in [1, 100, 255, 256, 257, 4096] {
        bytes::round_trip(
            device.file(),
            12_345,
            &data[..length],
            "what was copied through the BAR",
        )?;
    }
    let after = device.file_statistics()?;
    ensure!(
        after.inline_copies - before.inline_copies == 12,
        "{after:?}"
    );
    ensure!(
        after.submitted == before.submitted,
        "requests were made: {after:?}"
    );
    // It is device memory: a request reads the same bytes.
    let crc = device.crc32c(12_345, 4096, 0)?;
    ensure!(
        crc == device.crc32c_of(&*data, 0)?,
        "the device reads other bytes"
    );
    let mut large = vec![0; 4097];
    device.file().read_exact_at(&mut large, 12_345)?;
    ensure!(
        device.file_statistics()?.submitted > after.submitted,
        "4097 bytes are not small"
    );
    let region = Region::anonymous(2 * PAGE)?;
    region.protect_range(PAGE..2 * PAGE, rustix::mm::MprotectFlags::empty())?;
    let moved = region.pread(device.file(), PAGE - 100..PAGE + 100, 0)?;
    ensure!(
        matches!(moved, Ok(100)),
        "{moved:?} up to a page that is not there"
    );
    let moved = region.pread(device.file(), PAGE..PAGE + 100, 0)?;
    errno::expect(moved, Errno::FAULT, "a page that is not there")?;
    transfers_work()
}
