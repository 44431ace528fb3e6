//! Resets of the PCI function while the driver is bound (`/sys/bus/pci/devices/.../reset`). The
//! driver prepares for one, and recovers, as it does for a suspend of the machine.

use std::{fs, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;

use crate::{
    support::{
        KIB, MIB, PAGE,
        batch::Batch,
        bytes,
        faults::{self, VERY_SLOW},
        open,
        region::Region,
        uring::Uring,
    },
    test,
};

/// Resets the function of the only device.
fn reset() -> Result<()> {
    let nodes = vdma::nodes()?;
    let node = nodes.first().context("no device")?;
    let function = node.pci.as_ref().context("the device is no PCI function")?;
    let path = format!("/sys/bus/pci/devices/{function}/reset");
    if !std::path::Path::new(&path).exists() {
        return test::skip("this machine cannot reset the function");
    }
    fs::write(&path, "1").with_context(|| path.clone())
}

#[guest_test]
fn device_memory_and_mappings_survive_a_reset() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 3 * MIB + 5);
    device.file().write_all_at(&data, 777)?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(16, 0x00c0_ffee_u32)?;
    let buffer = device.allocate(data.len())?;
    reset()?;
    ensure!(
        mapping.load::<u32>(16)? == 0x00c0_ffee,
        "the mapping holds other bytes"
    );
    device.read(777, buffer.target(Some(0..data.len() as u64)))?;
    let mut back = vec![0; data.len()];
    buffer.read(0, &mut back)?;
    bytes::expect(&back, &data, "what was written before the reset")?;
    mapping.store(16, 0xbeef_u32)?;
    bytes::expect_at(
        device.file(),
        16,
        &0xbeef_u32.to_le_bytes(),
        "a store through the mapping",
    )?;
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn requests_in_flight_are_eio() -> Result<()> {
    const BATCH: Batch = Batch::at_one_offset(200, KIB, VERY_SLOW.start);
    let device = open()?;
    let region = Region::anonymous(BATCH.total())?;
    let mut ring = Uring::new(256)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&BATCH.reads(&device, &region)) }?;
    reset()?;
    let mut failed = 0;
    for completion in ring.wait_raw(BATCH.count)? {
        let lost = completion.is_error(Errno::IO);
        ensure!(lost || completion.is_bytes(KIB), "{completion:?}");
        failed += usize::from(lost);
    }
    ensure!(
        failed > 0,
        "the device was done before the reset: nothing was tested"
    );
    ring.expect_none()?;
    let data = bytes::random(2, 2 * PAGE);
    bytes::round_trip(device.file(), 5, &data, "what was written afterwards")
}

#[guest_test]
fn repeated_resets_work() -> Result<()> {
    let device = open()?;
    for round in 0..10 {
        let data = bytes::random(round, 10 * PAGE);
        device.file().write_all_at(&data, round)?;
        reset()?;
        bytes::expect_at(
            device.file(),
            round,
            &data,
            "what was written before the reset",
        )?;
    }
    let statistics = device.device_statistics()?;
    ensure!(statistics.failed == 0, "{statistics:?}");
    Ok(())
}
