//! Requests that the device never completes: they time out, and the device recovers.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;
use vdma::Device;

use crate::support::{
    KIB, PAGE,
    batch::Batch,
    bytes,
    driver::{Reloaded, Unbound},
    errno, faults, open,
    region::Region,
    uring::{self, Uring},
    wait,
};

/// Loads the driver with a time-out that a test can wait for.
fn short_timeout() -> Result<Reloaded> {
    Reloaded::with(&["timeout_ms=600"])
}

/// Fails unless transfers work once the device has recovered.
fn works_again(device: &Device) -> Result<()> {
    let data = bytes::random(1, 3 * PAGE);
    wait::until("the device recovers", || {
        match device.file().write_at(&data, 5000) {
            Ok(moved) => {
                ensure!(moved == data.len(), "{moved} bytes");
                Ok(true)
            }
            // The reset may fail requests that are submitted meanwhile.
            Err(error) => errno::expect::<(), _>(Err(error), Errno::IO, "a write").map(|()| false),
        }
    })?;
    bytes::expect_at(device.file(), 5000, &data, "what was written afterwards")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_lost_request_is_eio_and_the_device_recovers() -> Result<()> {
    let _driver = short_timeout()?;
    let device = open()?;
    for round in 0..2 {
        let mut buffer = vec![0; 5000];
        let result = device.file().read_at(&mut buffer, faults::LOST);
        errno::expect(result, Errno::IO, "a read that never completes")?;
        works_again(&device).with_context(|| format!("round {round}"))?;
    }
    // The driver's own first request after a reset may complete after later ones.
    wait::until_idle(&device)?;
    let statistics = device.device_statistics()?;
    ensure!(
        statistics.submitted == statistics.completed,
        "{statistics:?}"
    );
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn lost_requests_among_others_all_complete() -> Result<()> {
    const BATCH: Batch = Batch::consecutive(30, KIB, 0);
    let is_lost = |index: usize| index % 10 == 9;
    let _driver = short_timeout()?;
    let device = open()?;
    let data = bytes::random(2, BATCH.total());
    device.file().write_all_at(&data, 0)?;
    let region = Region::anonymous(BATCH.total())?;
    let mut ring = Uring::new(32)?;
    let requests = BATCH.requests(|range, offset| {
        let lost = is_lost(range.start / KIB);
        let base = if lost { faults::LOST } else { 0 };
        uring::read(device.file(), &region, range, base + offset)
    });
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&requests) }?;
    for completion in ring.wait_raw(BATCH.count)? {
        let index = usize::try_from(completion.user_data)?;
        let range = index * KIB..(index + 1) * KIB;
        if is_lost(index) {
            ensure!(completion.is_error(Errno::IO), "lost: {completion:?}");
        } else {
            ensure!(completion.is_bytes(KIB), "not lost: {completion:?}");
            bytes::expect(&region.read(range.clone())?, &data[range], "not lost")?;
        }
    }
    ring.expect_none()?;
    works_again(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_completion_with_an_unknown_id_is_survived() -> Result<()> {
    let _driver = short_timeout()?;
    let device = open()?;
    let mut buffer = vec![0; 5000];
    let result = device.file().read_at(&mut buffer, faults::WRONG_ID);
    errno::expect(result, Errno::IO, "a read that completes with another id")?;
    works_again(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn mappings_survive_a_device_reset() -> Result<()> {
    let _driver = short_timeout()?;
    let device = open()?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(8, 0x600d_f00d_u32)?;
    let result = device.file().read_at(&mut [0; 10], faults::LOST);
    errno::expect(result, Errno::IO, "a read that never completes")?;
    works_again(&device)?;
    ensure!(
        mapping.load::<u32>(8)? == 0x600d_f00d,
        "the mapping holds other bytes"
    );
    mapping.store(8, 0x1234_5678_u32)?;
    bytes::expect_at(
        device.file(),
        8,
        &0x1234_5678_u32.to_le_bytes(),
        "a store through the mapping",
    )?;
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_stopped_queue_is_enodev_until_rebound() -> Result<()> {
    let _driver = short_timeout()?;
    let device = open()?;
    let mut buffer = vec![0; 5000];
    let result = device.file().read_at(&mut buffer, faults::STOPPING);
    errno::expect(result, Errno::NODEV, "a read that stops the queue")?;
    let result = device.file().read_at(&mut buffer, 0);
    errno::expect(result, Errno::NODEV, "a read afterwards")?;
    drop(device);
    Unbound::new()?.bind()?;
    works_again(&open()?)
}
