//! Programs that end, or release files and memory, while their requests are in flight.

use std::{
    os::unix::{fs::FileExt as _, process::CommandExt as _},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::{io::Errno, process::Signal};
use vdma::Device;

use crate::support::{
    MIB, PAGE,
    aio::{Context, Opcode},
    batch::Batch,
    bytes,
    child::Child,
    completion::{Completion, Expected},
    faults::{self, SLOW},
    open,
    region::Region,
    uring::{Request, Uring},
    wait,
};

/// Some requests that stay in flight for a while.
const IN_FLIGHT: Batch = Batch::consecutive(4, 3 * PAGE, SLOW.start + 1);

/// Puts known bytes where [`IN_FLIGHT`] reads.
fn prepare_slow() -> Result<Vec<u8>> {
    let data = bytes::random(77, IN_FLIGHT.total());
    // Stores through the BAR are not delayed.
    let device = open()?;
    let mapping = device.map(SLOW.start, (1 + data.len()).next_multiple_of(PAGE))?;
    mapping.write(1, &data)?;
    Ok(data)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_submitted_request_completes_despite_cancellation() -> Result<()> {
    let data = prepare_slow()?;
    let device = open()?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    let mut ring = Uring::new(8)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&IN_FLIGHT.reads(&device, &region)) }?;
    let cancel = opcode::AsyncCancel::new(3).build();
    // SAFETY: It has no buffer.
    unsafe { ring.submit(&[Request::new(cancel, Expected::Raw).user_data(1000)]) }?;
    let (cancels, reads): (Vec<Completion>, Vec<Completion>) = ring
        .wait_raw(IN_FLIGHT.count + 1)?
        .into_iter()
        .partition(|completion| completion.user_data == 1000);
    let refused = [Errno::NOENT, Errno::ALREADY];
    ensure!(
        cancels.len() == 1 && refused.iter().any(|error| cancels[0].is_error(*error)),
        "the cancellation: {cancels:?}"
    );
    ensure!(
        reads.iter().all(|read| read.is_bytes(IN_FLIGHT.length)),
        "{reads:?}"
    );
    bytes::expect(&region.read(0..data.len())?, &data, "what was read")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn closing_the_file_does_not_affect_requests() -> Result<()> {
    let data = prepare_slow()?;
    let observer = open()?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    let mut ring = Uring::new(8)?;
    {
        let device = open()?;
        // SAFETY: The region lives until all requests have completed, below.
        unsafe { ring.submit(&IN_FLIGHT.reads(&device, &region)) }?;
    }
    ring.wait(IN_FLIGHT.count)?;
    bytes::expect(&region.read(0..data.len())?, &data, "what was read")?;
    wait::until_idle(&observer)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn unmapping_a_buffer_does_not_affect_requests() -> Result<()> {
    prepare_slow()?;
    let device = open()?;
    let mut ring = Uring::new(8)?;
    let mut region = Region::anonymous(IN_FLIGHT.total())?;
    // SAFETY: The test unmaps the region while the requests are in flight. The pages stay pinned,
    // and nothing in this process refers to them.
    unsafe { ring.submit(&IN_FLIGHT.reads(&device, &region)) }?;
    region.cut_back(0)?;
    // The kernel must not hand out these pages now.
    let others = Region::anonymous(16 * MIB)?;
    let pattern = vec![0xc3; others.len()];
    others.write(0, &pattern)?;
    ring.wait(IN_FLIGHT.count)?;
    bytes::expect(
        &others.read(0..others.len())?,
        &pattern,
        "memory that was mapped later",
    )
}

/// How a process ends, or the program that it runs.
#[derive(Clone, Copy)]
enum End {
    Exit,
    Kill,
    /// Another program replaces this one, memory and all.
    Exec,
}

/// Runs `submit` in a child, which then ends as `end` says, and waits until its requests are done.
fn end_in_flight(end: End, requests: usize, submit: fn(&Device) -> Result<()>) -> Result<()> {
    let device = open()?;
    let before = device.device_statistics()?.submitted;
    let child = Child::fork(|| {
        submit(&open()?)?;
        match end {
            End::Exit => Ok(()),
            End::Kill => loop {
                rustix::event::pause();
            },
            End::Exec => Err(Command::new("true").exec()).context("exec"),
        }
    })?;
    wait::until("the child has submitted", || {
        Ok(device.device_statistics()?.submitted >= before + requests as u64)
    })?;
    match end {
        End::Exit | End::Exec => child.succeed()?,
        End::Kill => {
            child.signal(Signal::KILL)?;
            child.die_of(Signal::KILL)?;
        }
    }
    wait::until_idle(&device)?;
    let statistics = device.device_statistics()?;
    ensure!(
        statistics.submitted == statistics.completed,
        "{statistics:?}"
    );
    Ok(())
}

fn leave_libaio_in_flight(device: &Device) -> Result<()> {
    let mut context = Context::new(8)?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    let mut iocbs = IN_FLIGHT.iocbs(Opcode::Read, device, &region)?;
    // SAFETY: The region stays mapped until the process ends.
    unsafe { context.submit_all(&mut iocbs) }?;
    std::mem::forget(context);
    std::mem::forget(region);
    Ok(())
}

fn leave_uring_in_flight(device: &Device) -> Result<()> {
    let mut ring = Uring::new(8)?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    // SAFETY: The region stays mapped until the process ends.
    unsafe { ring.submit(&IN_FLIGHT.reads(device, &region)) }?;
    std::mem::forget(ring);
    std::mem::forget(region);
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn exit_with_libaio_in_flight() -> Result<()> {
    end_in_flight(End::Exit, IN_FLIGHT.count, leave_libaio_in_flight)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn exit_with_uring_in_flight() -> Result<()> {
    end_in_flight(End::Exit, IN_FLIGHT.count, leave_uring_in_flight)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn kill_with_libaio_in_flight() -> Result<()> {
    end_in_flight(End::Kill, IN_FLIGHT.count, leave_libaio_in_flight)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn kill_with_uring_in_flight() -> Result<()> {
    end_in_flight(End::Kill, IN_FLIGHT.count, leave_uring_in_flight)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn kill_with_a_read_in_flight() -> Result<()> {
    end_in_flight(End::Kill, 1, |device| {
        let mut buffer = vec![0; IN_FLIGHT.total()];
        device.file().read_exact_at(&mut buffer, SLOW.start)?;
        Ok(())
    })
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn exec_with_libaio_in_flight() -> Result<()> {
    end_in_flight(End::Exec, IN_FLIGHT.count, leave_libaio_in_flight)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn exec_with_uring_in_flight() -> Result<()> {
    end_in_flight(End::Exec, IN_FLIGHT.count, leave_uring_in_flight)
}
