//! Requests that the device never answers: late is an error, and not the end.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::io::Errno;
use vdma::Device;

use crate::support::{
    KIB, PAGE, bytes,
    driver::{Reloaded, Unbound},
    errno, faults, open,
    region::Region,
    uring::{Uring, fd},
    wait,
};

/// The driver with a time-out that a test can wait for.
fn impatient() -> Result<Reloaded> {
    Reloaded::with(&["timeout_ms=600"])
}

/// Fails unless transfers work, once the device is back.
fn works_again(device: &Device) -> Result<()> {
    let data = bytes::random(1, 3 * PAGE);
    wait::until("the device is back", || {
        match device.file().write_at(&data, 5000) {
            Ok(moved) => {
                ensure!(moved == data.len(), "{moved} bytes");
                Ok(true)
            }
            // What is submitted while the device is reset may go down with it.
            Err(error) => errno::expect::<(), _>(Err(error), Errno::IO, "a write").map(|()| false),
        }
    })?;
    let mut back = vec![0; data.len()];
    device.file().read_exact_at(&mut back, 5000)?;
    bytes::expect(&back, &data, "what was written afterwards")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_lost_request_is_eio_and_the_device_recovers() -> Result<()> {
    let _driver = impatient()?;
    let device = open()?;
    for round in 0..2 {
        let mut buffer = vec![0; 5000];
        let result = device.file().read_at(&mut buffer, faults::LOST);
        errno::expect(result, Errno::IO, "a read that is never answered")?;
        works_again(&device).with_context(|| format!("round {round}"))?;
    }
    // The driver's own first request after a reset may come back after what was submitted behind it.
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
    const COUNT: usize = 30;
    let _driver = impatient()?;
    let device = open()?;
    let data = bytes::random(2, COUNT * KIB);
    device.file().write_all_at(&data, 0)?;
    let region = Region::anonymous(COUNT * KIB)?;
    let mut ring = Uring::new(32)?;
    let entries: Vec<_> = (0..COUNT)
        .map(|index| {
            let place = if index % 10 == 9 { faults::LOST } else { 0 };
            opcode::Read::new(fd(device.file()), region.at(index * KIB), 1024)
                .offset(place + (index * KIB) as u64)
                .build()
                .user_data(index as u64)
        })
        .collect();
    // SAFETY: The region lives until all has completed, below.
    unsafe { ring.submit(&entries) }?;
    for completion in ring.wait(COUNT)? {
        let index = usize::try_from(completion.user_data)?;
        let range = index * KIB..(index + 1) * KIB;
        if index % 10 == 9 {
            ensure!(
                completion.result == -Errno::IO.raw_os_error(),
                "lost: {completion:?}"
            );
        } else {
            ensure!(completion.result == 1024, "not lost: {completion:?}");
            bytes::expect(&region.read(range.clone())?, &data[range], "not lost")?;
        }
    }
    ring.expect_none()?;
    works_again(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_completion_with_an_unknown_id_is_survived() -> Result<()> {
    let _driver = impatient()?;
    let device = open()?;
    let mut buffer = vec![0; 5000];
    let result = device.file().read_at(&mut buffer, faults::WRONG_ID);
    errno::expect(result, Errno::IO, "a read whose answer names another")?;
    works_again(&device)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn mappings_survive_a_device_reset() -> Result<()> {
    let _driver = impatient()?;
    let device = open()?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(8, 0x600d_f00d_u32)?;
    let result = device.file().read_at(&mut [0; 10], faults::LOST);
    errno::expect(result, Errno::IO, "a read that is never answered")?;
    works_again(&device)?;
    ensure!(
        mapping.load::<u32>(8)? == 0x600d_f00d,
        "the mapping shows something else"
    );
    mapping.store(8, 0x1234_5678_u32)?;
    let mut back = [0; 4];
    device.file().read_exact_at(&mut back, 8)?;
    ensure!(
        u32::from_le_bytes(back) == 0x1234_5678,
        "stores go elsewhere"
    );
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_stopped_queue_is_enodev_until_rebound() -> Result<()> {
    let _driver = impatient()?;
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
