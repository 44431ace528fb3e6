//! Signals that arrive while a call waits for the device.

use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, bail, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, process::Signal};

use crate::support::{
    MIB, PAGE, bytes,
    child::Child,
    errno,
    faults::{self, SLUGGISH, VERY_SLOW},
    open, procfs,
    region::Region,
    signal,
    uring::{self, Uring},
    wait,
};

/// Runs `call` in a child, sends it a signal once its request is in flight, and waits until the
/// request has completed.
fn signal_during(call: impl FnOnce() -> Result<()>) -> Result<()> {
    let observer = open()?;
    signal::interrupt_on(Signal::USR1)?;
    let child = Child::fork(call)?;
    wait::until_busy(&observer)?;
    child.signal(Signal::USR1)?;
    child.succeed()?;
    wait::until_idle(&observer)?;
    let statistics = observer.device_statistics()?;
    ensure!(
        statistics.submitted == statistics.completed,
        "{statistics:?}"
    );
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_read_ends_with_eintr() -> Result<()> {
    signal_during(|| {
        let mut buffer = vec![0; 3 * PAGE];
        let result = open()?.file().read_at(&mut buffer, VERY_SLOW.start);
        errno::expect(result, Errno::INTR, "an interrupted read")?;
        // Freed memory would be reused while the device may still write to it.
        std::mem::forget(buffer);
        Ok(())
    })
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_write_ends_with_eintr() -> Result<()> {
    signal_during(|| {
        let buffer = vec![0; 3 * PAGE];
        let result = open()?.file().write_at(&buffer, VERY_SLOW.start);
        errno::expect(result, Errno::INTR, "an interrupted write")
    })
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_sync_ends_with_eintr() -> Result<()> {
    signal_during(|| {
        // The standard library's method would retry.
        let result = rustix::fs::fsync(open()?.file());
        errno::expect(result, Errno::INTR, "an interrupted fsync")
    })
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn pages_stay_pinned_until_the_device_answers() -> Result<()> {
    const PAGES: usize = 5;
    let data = bytes::random(1, PAGES * PAGE);
    let observer = open()?;
    observer.map(VERY_SLOW.start, data.len())?.write(0, &data)?;
    let before = procfs::pinned_pages()?;
    let buffer = Region::anonymous(data.len())?;
    signal::interrupt_on(Signal::USR1)?;
    let child = Child::fork(|| {
        let device = open()?;
        let result = buffer.pread(device.file(), 0..data.len(), VERY_SLOW.start)?;
        errno::expect(result, Errno::INTR, "an interrupted read")?;
        let pinned = procfs::pinned_pages()? - before;
        let busy = device.device_statistics()?.in_flight > 0;
        // Read in this order, a request that is in flight now was so when the pins were counted.
        ensure!(
            !busy || pinned == i64::try_from(PAGES)?,
            "{pinned} pages are pinned while the device writes to {PAGES}"
        );
        ensure!(
            busy,
            "the request has completed already: nothing was tested"
        );
        wait::until_idle(&device)?;
        ensure!(
            procfs::pinned_pages()? == before,
            "pages are pinned although no request is in flight"
        );
        // The transfer continued, and wrote to the buffer that was named.
        bytes::expect(&buffer.read(0..data.len())?, &data, "the buffer afterwards")
    })?;
    wait::until_busy(&observer)?;
    child.signal(Signal::USR1)?;
    child.succeed()
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn memory_is_not_reused_before_the_transfer_ends() -> Result<()> {
    let observer = open()?;
    observer
        .map(VERY_SLOW.start, 64 * PAGE)?
        .write(0, &bytes::random(1, 64 * PAGE))?;
    signal_during(|| {
        let device = open()?;
        let mut buffer = Region::anonymous(64 * PAGE)?;
        let result = buffer.pread(device.file(), 0..64 * PAGE, VERY_SLOW.start)?;
        errno::expect(result, Errno::INTR, "an interrupted read")?;
        buffer.cut_back(0)?;
        let others = Region::anonymous(32 * MIB)?;
        let pattern = vec![0x3c; others.len()];
        others.write(0, &pattern)?;
        wait::until_idle(&device)?;
        bytes::expect(
            &others.read(0..others.len())?,
            &pattern,
            "memory that was mapped later",
        )
    })
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn sendfile_completes_or_returns_eintr() -> Result<()> {
    let data = bytes::random(2, 4 * PAGE);
    open()?.map(VERY_SLOW.start, data.len())?.write(0, &data)?;
    signal_during(|| {
        let device = open()?;
        let target = std::fs::File::from(rustix::fs::memfd_create(
            "target",
            rustix::fs::MemfdFlags::CLOEXEC,
        )?);
        let mut position = VERY_SLOW.start;
        let length = data.len();
        match rustix::fs::sendfile(&target, device.file(), Some(&mut position), length) {
            Ok(moved) => bytes::expect_at(&target, 0, &data[..moved], "what arrived"),
            Err(Errno::INTR) => Ok(()),
            Err(error) => bail!("an interrupted sendfile: {error}"),
        }
    })
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_storm_of_signals() -> Result<()> {
    let child = Child::fork(|| {
        signal::interrupt_on(Signal::ALARM)?;
        let device = open()?;
        let data = bytes::random(4, 5 * PAGE);
        device.map(SLUGGISH.start, data.len())?.write(0, &data)?;
        let _timer = signal::Alarms::every_microseconds(1500)?;
        let (mut whole, mut interrupted) = (0, 0);
        for round in 0..150 {
            let buffer = Region::anonymous(data.len())?;
            match buffer.pread(device.file(), 0..data.len(), SLUGGISH.start)? {
                Ok(moved) => {
                    bytes::expect(&buffer.read(0..moved)?, &data[..moved], "what was read")
                        .with_context(|| format!("round {round}"))?;
                    whole += 1;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => interrupted += 1,
                Err(error) => return Err(error).context("a read under signals"),
            }
        }
        ensure!(
            interrupted > 0,
            "{whole} reads were whole, and none was interrupted"
        );
        Ok(())
    })?;
    child.succeed()?;
    wait::until_idle(&open()?)
}

#[guest_test]
fn no_eintr_without_a_signal() -> Result<()> {
    let device = open()?;
    let region = Region::anonymous(PAGE)?;
    let mut buffer = vec![0; 3 * PAGE];
    for round in 0..200 {
        let mut ring = Uring::new(2)?;
        let read = uring::read(device.file(), &region, 0..PAGE, 0);
        // SAFETY: The region lives until the request has completed.
        unsafe { ring.run(&[read]) }?;
        // Closing a ring leaves work to its task, which then looks as if a signal were pending.
        drop(ring);
        for _ in 0..3 {
            let moved = device
                .file()
                .read_at(&mut buffer, 0)
                .with_context(|| format!("round {round}: a read without a signal"))?;
            ensure!(moved == buffer.len(), "round {round}: {moved} bytes");
            rustix::fs::fsync(device.file()).with_context(|| format!("round {round}: fsync"))?;
        }
    }
    Ok(())
}
