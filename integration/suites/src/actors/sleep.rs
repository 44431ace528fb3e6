//! The actor for a machine that sleeps.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::support::{MIB, PAGE, bytes, child::Child, open, procfs, wait};

/// Number of suspends.
const SLEEPS: u64 = 3;

/// The file and the word with which a suspend to RAM is requested: memory is kept, devices lose
/// their power.
const SLEEP: (&str, &str) = ("/sys/power/state", "mem");

/// The kernel's count of suspends.
const SLEPT: &str = "/sys/power/suspend_stats/success";

/// Processes that read when the machine is suspended.
const SLEEPERS: u64 = 4;

/// Bytes of each of their reads.
const READ: usize = 64 * 1024;

/// Suspends the machine several times while processes read, and reports the outcome in the kernel
/// log, because the port to the harness does not survive.
pub(super) fn sleep_and_wake() -> Result<()> {
    // The agent would exit when its port disappears.
    if let Some(agent) = rustix::process::getppid() {
        rustix::process::kill_process(agent, Signal::STOP).context("cannot stop the agent")?;
    }
    let outcome = match sleep_under_load() {
        Ok(()) => "well".to_owned(),
        Err(error) => format!("{error:#}").replace('\n', "; "),
    };
    fs::write("/dev/kmsg", format!("vdma-mark: slept: {outcome}\n")).context("/dev/kmsg")
}

fn sleep_under_load() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 3 * MIB + 5);
    device.file().write_all_at(&data, 777)?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(16, 0x00c0_ffee_u32)?;
    let pinned = procfs::pinned_pages()?;
    let enough = Path::new("/tmp/slept-enough");
    let readers = (0..SLEEPERS)
        .map(|number| {
            let (device, data) = (&device, &data);
            Child::fork(move || {
                let mut buffer = vec![0; READ];
                let mut at = usize::try_from(number)? * 4097;
                while !enough.exists() {
                    at = (at + 12_345) % (data.len() - READ);
                    device.file().read_exact_at(&mut buffer, 777 + at as u64)?;
                    bytes::expect(&buffer, &data[at..at + READ], "a read across the sleep")?;
                }
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let before = times_slept()?;
    for round in 0..SLEEPS {
        wait::until_busy(&device)?;
        // The harness wakes it.
        fs::write(SLEEP.0, SLEEP.1).with_context(|| format!("sleep {round}"))?;
        ensure!(
            times_slept()? == before + round + 1,
            "the machine did not sleep in round {round}"
        );
        ensure!(
            mapping.load::<u32>(16)? == 0x00c0_ffee,
            "the mapping holds other bytes after sleep {round}"
        );
    }
    fs::write(enough, "").context("cannot stop the readers")?;
    for reader in readers {
        reader.succeed()?;
    }
    wait::until_idle(&device)?;
    bytes::expect_at(
        device.file(),
        777,
        &data,
        "what was written before the sleep",
    )?;
    mapping.store(16, 0xbeef_u32)?;
    bytes::expect_at(
        device.file(),
        16,
        &0xbeef_u32.to_le_bytes(),
        "a store through the mapping",
    )?;
    let statistics = device.device_statistics()?;
    ensure!(
        statistics.failed == 0,
        "{} requests failed",
        statistics.failed
    );
    ensure!(procfs::pinned_pages()? == pinned, "pages are still pinned");
    Ok(())
}

fn times_slept() -> Result<u64> {
    let text = fs::read_to_string(SLEPT).context(SLEPT)?;
    Ok(text.trim().parse()?)
}
