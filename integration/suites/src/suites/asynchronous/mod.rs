//! Asynchronous I/O: submitted in the context of the caller, and every request completes once.

mod libaio;
mod uring;

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use vdma::Device;

use crate::support::{
    aio::{Context, Opcode},
    batch::Batch,
    completion::Completion,
    faults::{self, SLUGGISH},
    open,
    region::Region,
    uring::Uring,
};

/// Fills device memory with bytes that the test does not write there.
pub(super) fn overwrite(device: &Device, batch: &Batch) -> Result<()> {
    let bytes = vec![0x5a; batch.total()];
    device
        .file()
        .write_all_at(&bytes, batch.offset)
        .context("cannot prepare device memory")
}

/// The results by the `user_data` of their requests.
pub(super) fn results_in_order(mut completions: Vec<Completion>) -> Vec<i64> {
    completions.sort_unstable();
    completions.iter().map(|one| one.result).collect()
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn submitting_does_not_block() -> Result<()> {
    let batch = Batch::consecutive(16, 4096, SLUGGISH.start);
    let region = Region::anonymous(batch.total())?;
    {
        let device = open()?;
        let mut ring = Uring::new(16)?;
        // SAFETY: The region lives until all requests have completed.
        unsafe { ring.run(&batch.reads(&device, &region)) }?;
        let most = device.file_statistics()?.in_flight_max;
        ensure!(
            most > 1,
            "io_uring: never more than {most} request(s) at once"
        );
    }
    let device = open()?;
    let mut context = Context::new(16)?;
    let mut iocbs = batch.iocbs(Opcode::Read, &device, &region)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { context.submit_all(&mut iocbs) }?;
    context.wait(batch.count)?;
    let most = device.file_statistics()?.in_flight_max;
    ensure!(
        most > 1,
        "libaio: never more than {most} request(s) at once"
    );
    Ok(())
}
