//! Operations as io_uring commands (`URING_CMD`).

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::{io::Errno, process::Signal};
use vdma::{
    Device, Operation,
    protocol::{COMMAND_INCOMING_BUFFER, Command, URING_RUN},
};

use crate::support::{
    KIB, MIB, PAGE, bytes,
    child::Child,
    completion::Expected,
    faults::{self, SLOW},
    open, procfs,
    region::Region,
    uring::{self, Request, Uring, fd},
    wait,
};

fn command(operation: Operation, offset: u64, length: usize) -> Command {
    Command {
        operation: operation.code(),
        offset,
        length: length as u64,
        ..Command::default()
    }
}

/// Runs commands at once. Afterwards each holds its result, which has to be that of its completion.
fn run(ring: &mut Uring, device: &Device, commands: &mut [Command]) -> Result<()> {
    let requests: Vec<Request> = (0..)
        .zip(commands.iter_mut())
        .map(|(index, command)| uring::command(device, command).user_data(index))
        .collect();
    // SAFETY: The commands and the memory that they name live until all have completed, below.
    unsafe { ring.submit(&requests) }?;
    for completion in ring.wait_raw(commands.len())? {
        let command = &commands[usize::try_from(completion.user_data)?];
        ensure!(
            completion.result == command.result,
            "{completion:?} for {command:?}"
        );
    }
    ring.expect_none()
}

/// Reads that stay in flight for a while, one for each of 64 pages.
fn slow_reads(region: &Region) -> Vec<Command> {
    (0..64)
        .map(|index| {
            let mut read = command(Operation::Read, SLOW.start, PAGE);
            read.incoming = region.at(index * PAGE) as u64;
            read
        })
        .collect()
}

#[guest_test]
fn commands_complete_with_their_results() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 3 * PAGE);
    let region = Region::anonymous(8 * PAGE)?;
    region.write(5, &data)?;
    let mut ring = Uring::new(8)?;
    let mut write = command(Operation::Write, 1234, data.len());
    write.outgoing = region.at(5) as u64;
    let mut commands = [write];
    run(&mut ring, &device, &mut commands)?;
    ensure!(commands[0].result == data.len() as i64, "{:?}", commands[0]);
    bytes::expect_at(device.file(), 1234, &data, "what a command wrote")?;
    let mut copy = command(Operation::Copy, 0, data.len());
    copy.outgoing = region.at(5) as u64;
    copy.incoming = region.at(4 * PAGE + 7) as u64;
    run(&mut ring, &device, &mut [copy])?;
    let copied = region.read(4 * PAGE + 7..4 * PAGE + 7 + data.len())?;
    bytes::expect(&copied, &data, "what a command copied")
}

#[guest_test]
fn many_commands_at_once() -> Result<()> {
    const COUNT: usize = 200;
    let device = open()?;
    let mut ring = Uring::new(256)?;
    let mut commands: Vec<Command> = (0..COUNT)
        .map(|index| {
            let mut fill = command(Operation::Fill, (index * KIB) as u64, KIB);
            fill.argument = index as u64 * 0x0101_0101_0101_0101;
            fill
        })
        .collect();
    run(&mut ring, &device, &mut commands)?;
    let mut back = vec![0; COUNT * KIB];
    device.file().read_exact_at(&mut back, 0)?;
    for (index, chunk) in back.chunks(KIB).enumerate() {
        let expected = u8::try_from(index)?;
        ensure!(chunk.iter().all(|byte| *byte == expected), "part {index}");
    }
    Ok(())
}

#[guest_test]
fn long_commands_are_split() -> Result<()> {
    const LENGTH: usize = 5 * MIB + 321;
    let device = open()?;
    let data = bytes::random(2, LENGTH);
    let region = Region::anonymous(6 * MIB)?;
    region.write(99, &data)?;
    let mut ring = Uring::new(8)?;
    let mut write = command(Operation::WriteCrc32c, 50, LENGTH);
    write.outgoing = region.at(99) as u64;
    let mut checksum = command(Operation::Crc32c, 50, LENGTH);
    checksum.argument = 0;
    let mut commands = [write];
    run(&mut ring, &device, &mut commands)?;
    let written = commands[0];
    let mut commands = [checksum];
    run(&mut ring, &device, &mut commands)?;
    ensure!(written.result == LENGTH as i64, "{written:?}");
    ensure!(
        written.value == commands[0].value,
        "{written:?} and {:?}",
        commands[0]
    );
    bytes::expect_at(device.file(), 50, &data, "what a long command wrote")
}

#[guest_test]
fn values_are_stored_in_the_command() -> Result<()> {
    let device = open()?;
    device.fill(0, 1 << 20, 0)?;
    let region = Region::anonymous(2 * PAGE)?;
    region.write(5000, &[1])?;
    let mut compare = command(Operation::Compare, 0, 2 * PAGE);
    compare.outgoing = region.at(0) as u64;
    let mut commands = [compare];
    run(&mut Uring::new(4)?, &device, &mut commands)?;
    ensure!(commands[0].value == 5000, "{:?}", commands[0]);
    Ok(())
}

#[guest_test]
fn bad_commands_fail_as_completions() -> Result<()> {
    let device = open()?;
    let mut ring = Uring::new(8)?;
    let mut unknown = command(Operation::Nop, 0, 0);
    unknown.operation = 77;
    let mut missing = command(Operation::Read, 0, 10);
    missing.flags = COMMAND_INCOMING_BUFFER;
    let mut nowhere = command(Operation::Read, 0, 10);
    nowhere.incoming = 16;
    let cases = [
        (unknown, Errno::INVAL),
        (missing, Errno::NOENT),
        (nowhere, Errno::FAULT),
    ];
    for (mut command, expected) in cases {
        let request = uring::command(&device, &mut command);
        // SAFETY: The command lives until it has completed, below.
        unsafe { ring.submit(&[request]) }?;
        ring.wait_for_error(1, expected)?;
    }
    let no_structure = opcode::UringCmd16::new(fd(device.file()), URING_RUN)
        .addr(Some(16))
        .build();
    // SAFETY: The address is not that of any memory.
    unsafe { ring.submit(&[Request::new(no_structure, Expected::Raw)]) }?;
    ring.wait_for_error(1, Errno::FAULT)
        .context("no structure")?;
    let unknown = opcode::UringCmd16::new(fd(device.file()), 5).build();
    // SAFETY: It names no memory.
    unsafe { ring.submit(&[Request::new(unknown, Expected::Raw)]) }?;
    ring.wait_for_error(1, Errno::NOTTY)
        .context("an unknown command")?;
    device.nop()?;
    Ok(())
}

/// A NOP that became as many requests as its length calls for would outlive the ring by days.
#[guest_test]
fn commands_without_data_ignore_the_length() -> Result<()> {
    let device = open()?;
    let mut ring = Uring::new(4)?;
    for operation in [Operation::Nop, Operation::Flush] {
        for length in [64 << 30, i64::MAX.cast_unsigned(), u64::MAX] {
            let before = device.file_statistics()?.submitted;
            let mut long = Command {
                length,
                ..command(operation, 0, 0)
            };
            run(&mut ring, &device, std::slice::from_mut(&mut long))?;
            ensure!(long.result == 0, "{long:?}");
            let requests = device.file_statistics()?.submitted - before;
            ensure!(requests == 1, "{requests} requests for {long:?}");
        }
    }
    Ok(())
}

#[guest_test]
fn commands_work_with_sqpoll() -> Result<()> {
    let device = open()?;
    let data = bytes::random(3, 9 * PAGE);
    let region = Region::anonymous(10 * PAGE)?;
    region.write(0, &data)?;
    let mut ring = Uring::with_sqpoll(8)?;
    let mut write = command(Operation::Write, 0, data.len());
    write.outgoing = region.at(0) as u64;
    run(&mut ring, &device, &mut [write])?;
    bytes::expect_at(device.file(), 0, &data, "what a command wrote")
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn commands_need_no_worker_threads() -> Result<()> {
    let device = open()?;
    let mut ring = Uring::new(64)?;
    let region = Region::anonymous(64 * PAGE)?;
    let mut commands = slow_reads(&region);
    let requests = uring::commands(&device, &mut commands);
    // SAFETY: The commands and the region live until all have completed, below.
    unsafe { ring.submit(&requests) }?;
    let workers = procfs::io_workers()?;
    ensure!(workers.is_empty(), "workers: {workers:?}");
    ring.wait(64)?;
    let workers = procfs::io_workers()?;
    ensure!(workers.is_empty(), "workers: {workers:?}");
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn submitting_a_command_does_not_block() -> Result<()> {
    let device = open()?;
    let mut ring = Uring::new(4)?;
    let region = Region::anonymous(PAGE)?;
    let mut slow = command(Operation::Read, SLOW.start, PAGE);
    slow.incoming = region.at(0) as u64;
    let request = uring::command(&device, &mut slow);
    // SAFETY: The command and the region live until it has completed, below.
    unsafe { ring.submit(&[request]) }?;
    ensure!(
        device.file_statistics()?.in_flight == 1,
        "the command is not in flight"
    );
    ring.wait(1)?;
    ensure!(slow.result == PAGE as i64, "{slow:?}");
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn kill_with_commands_in_flight() -> Result<()> {
    let device = open()?;
    let pinned = procfs::pinned_pages()?;
    let child = Child::fork(|| {
        let mut ring = Uring::new(64)?;
        let region = Region::anonymous(64 * PAGE)?;
        let mut commands = slow_reads(&region);
        let requests = uring::commands(&device, &mut commands);
        // SAFETY: The process ends while the commands are in flight; the pages are pinned.
        unsafe { ring.submit(&requests) }?;
        ring.wait(64)
    })?;
    wait::until_busy(&device)?;
    child.signal(Signal::KILL)?;
    child.die_of(Signal::KILL)?;
    wait::until_idle(&device)?;
    wait::until("the pages are unpinned", || {
        Ok(procfs::pinned_pages()? == pinned)
    })
}
