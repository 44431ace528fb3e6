//! libaio: requests and their completions.

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;

use super::{overwrite, results_in_order};
use crate::support::{
    PAGE,
    aio::{Context, Iocb, Opcode},
    batch::Batch,
    bytes, open,
    region::Region,
};

/// Writes and reads back with libaio, and compares.
fn libaio_round_trip(batch: Batch) -> Result<()> {
    let device = open()?;
    let mut context = Context::new(u32::try_from(batch.count)?)?;
    let data = bytes::random(batch.length as u64, batch.total());
    let source = Region::anonymous(batch.total())?;
    let target = Region::anonymous(batch.total())?;
    source.write(0, &data)?;
    overwrite(&device, &batch)?;
    for (opcode, region) in [(Opcode::Write, &source), (Opcode::Read, &target)] {
        let mut iocbs = batch.iocbs(opcode, &device, region)?;
        let mut taken = 0;
        while taken < iocbs.len() {
            // SAFETY: The regions live until all requests have completed, below.
            taken += unsafe { context.submit(&mut iocbs[taken..]) }?;
        }
        context.wait(batch.count)?;
        context.expect_none()?;
    }
    bytes::expect(&target.read(0..batch.total())?, &data, "what was read back")
}

#[guest_test]
fn libaio_moves_many_at_once() -> Result<()> {
    libaio_round_trip(Batch::consecutive(128, 5001, 12_345))
}

#[guest_test]
fn libaio_syncs() -> Result<()> {
    let device = open()?;
    let mut context = Context::new(4)?;
    let mut iocbs = [
        Iocb::new(Opcode::Sync, device.file(), 1),
        Iocb::new(Opcode::DataSync, device.file(), 2),
    ];
    // SAFETY: They have no buffers.
    unsafe { context.submit_all(&mut iocbs) }?;
    context.wait(iocbs.len())?;
    device.file().sync_all().context("fsync")?;
    device.file().sync_data().context("fdatasync")
}

#[guest_test]
fn libaio_reports_errors_as_completions() -> Result<()> {
    let device = open()?;
    let size = device.info().memory_size;
    let mut context = Context::new(4)?;
    let region = Region::anonymous(2 * PAGE)?;
    region.protect_range(PAGE..2 * PAGE, rustix::mm::MprotectFlags::empty())?;
    let iocb = |opcode, start, offset, data| {
        let range = start..start + 100;
        Iocb::transfer(opcode, device.file(), &region, range, offset, data)
    };
    let mut iocbs = [
        iocb(Opcode::Read, PAGE, 0, 0)?,
        iocb(Opcode::Write, PAGE, 0, 1)?,
        iocb(Opcode::Write, 0, size, 2)?,
        iocb(Opcode::Read, 0, size, 3)?,
    ];
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { context.submit_all(&mut iocbs) }?;
    let results = results_in_order(context.wait_raw(iocbs.len())?);
    let fault = -i64::from(Errno::FAULT.raw_os_error());
    let no_space = -i64::from(Errno::NOSPC.raw_os_error());
    ensure!(results == [fault, fault, no_space, 0], "{results:?}");
    Ok(())
}

#[guest_test]
fn libaio_beyond_the_depth_of_the_queue() -> Result<()> {
    libaio_round_trip(Batch::consecutive(1000, 777, 1))
}

/// The last request of a submission waits for free descriptors until all others have completed, so
/// that none of them kicks the device for it.
#[guest_test(device_arguments = &["--queue-size=16"])]
fn libaio_waits_for_free_descriptors_with_the_last_request() -> Result<()> {
    const BATCH: Batch = Batch::at_one_offset(17, PAGE, 0);
    let device = open()?;
    let mut context = Context::new(32)?;
    let region = Region::anonymous(BATCH.total())?;
    for round in 0..20 {
        let mut iocbs = BATCH.iocbs(Opcode::Read, &device, &region)?;
        // SAFETY: The region lives until all requests have completed, below.
        unsafe { context.submit_all(&mut iocbs) }?;
        context
            .wait(BATCH.count)
            .with_context(|| format!("round {round}"))?;
    }
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.queue_full > 0,
        "no request waited: {statistics:?}"
    );
    Ok(())
}
