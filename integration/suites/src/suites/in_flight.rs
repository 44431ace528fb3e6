//! Programs that go, or let go, while the device has their requests.

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
    bytes,
    child::Child,
    faults::{self, SLOW},
    open,
    pieces::Pieces,
    region::Region,
    uring::{Completion, Uring},
    wait,
};

/// Some requests that the device takes its time for.
const IN_FLIGHT: Pieces = Pieces {
    count: 4,
    length: 3 * PAGE,
    position: SLOW.start + 1,
};

/// Puts known bytes where [`IN_FLIGHT`] reads, in time that the device takes.
fn prepare_slow() -> Result<Vec<u8>> {
    let data = bytes::random(77, IN_FLIGHT.total());
    // Through the BAR: nothing delays that.
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
    // SAFETY: The region lives until all has completed, below.
    unsafe { ring.submit(&IN_FLIGHT.reads(&device, &region)) }?;
    let cancel = opcode::AsyncCancel::new(3).build().user_data(1000);
    // SAFETY: It has no buffer.
    unsafe { ring.submit(&[cancel]) }?;
    let (cancels, reads): (Vec<Completion>, Vec<Completion>) = ring
        .wait(IN_FLIGHT.count + 1)?
        .into_iter()
        .partition(|completion| completion.user_data == 1000);
    let refused = [Errno::NOENT, Errno::ALREADY].map(|error| -error.raw_os_error());
    ensure!(
        cancels.len() == 1 && refused.contains(&cancels[0].result),
        "the cancellation: {cancels:?}"
    );
    IN_FLIGHT.check_uring(&reads)?;
    bytes::expect(&region.read(0..data.len())?, &data, "what was read")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn closing_the_file_does_not_affect_requests() -> Result<()> {
    let data = prepare_slow()?;
    let watcher = open()?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    let mut ring = Uring::new(8)?;
    {
        let device = open()?;
        // SAFETY: The region lives until all has completed, below.
        unsafe { ring.submit(&IN_FLIGHT.reads(&device, &region)) }?;
    }
    IN_FLIGHT.check_uring(&ring.wait(IN_FLIGHT.count)?)?;
    bytes::expect(&region.read(0..data.len())?, &data, "what was read")?;
    wait::until_idle(&watcher)
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn unmapping_a_buffer_does_not_affect_requests() -> Result<()> {
    prepare_slow()?;
    let device = open()?;
    let mut ring = Uring::new(8)?;
    let mut region = Region::anonymous(IN_FLIGHT.total())?;
    // SAFETY: The region is unmapped while the requests go on: that is what is tested. The pages
    // stay pinned, and nothing in this process refers to them.
    unsafe { ring.submit(&IN_FLIGHT.reads(&device, &region)) }?;
    region.cut_back(0)?;
    // Whoever gets memory now must not get these pages.
    let others = Region::anonymous(16 * MIB)?;
    let pattern = vec![0xc3; others.len()];
    others.write(0, &pattern)?;
    IN_FLIGHT.check_uring(&ring.wait(IN_FLIGHT.count)?)?;
    bytes::expect(&others.read(0..others.len())?, &pattern, "others' memory")
}

/// How a process ends, or its program.
#[derive(Clone, Copy)]
enum End {
    Exit,
    Kill,
    /// Another program takes the process over, memory and all.
    Exec,
}

/// Runs `submit` in a child, which ends as it is told to, and waits for the device.
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
    let context = Context::new(8)?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    let mut iocbs = IN_FLIGHT.iocbs(Opcode::Read, device, &region)?;
    // SAFETY: The region is left to the end of the process.
    let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    ensure!(taken == iocbs.len(), "{taken} taken");
    std::mem::forget(context);
    std::mem::forget(region);
    Ok(())
}

fn leave_uring_in_flight(device: &Device) -> Result<()> {
    let mut ring = Uring::new(8)?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    // SAFETY: The region is left to the end of the process.
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
