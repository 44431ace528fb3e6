//! The machine's devices are put to sleep and woken: device memory, mappings, requests across it.
//!
//! The kernel's own test mode goes all the way to the drivers' freeze and restore and no further:
//! no clock of an emulated machine has to wake it.

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::support::aio::{Context, Iocb, Opcode};
use crate::support::child::Child;
use crate::support::faults::{self, SLUGGISH, VERY_SLOW};
use crate::support::region::Region;
use crate::support::{MIB, PAGE, bytes, errno, open, wait};
use crate::test::{Skip, Test};

pub(crate) const TESTS: &[Test] = &[
    sleeping("memory_is_kept", memory_is_kept),
    sleeping("requests_in_flight_end", requests_in_flight_end),
    sleeping(
        "a_waiting_read_lets_the_machine_sleep",
        a_waiting_read_lets_the_machine_sleep,
    ),
    sleeping("sleeping_again_and_again", sleeping_again_and_again),
];

/// A test in a guest of its own kind: what goes wrong while it sleeps is to be seen.
const fn sleeping(name: &'static str, run: fn() -> Result<()>) -> Test {
    Test::new(name, run)
        .device_arguments(faults::ARGUMENTS)
        .kernel_parameters(&["no_console_suspend", "suspend.pm_test_delay=1"])
}

const STATE: &str = "/sys/power/state";
const TEST_MODE: &str = "/sys/power/pm_test";
const SLEPT: &str = "/sys/power/suspend_stats/success";

/// Puts all devices to sleep for a second.
fn sleep() -> Result<()> {
    if !Path::new(TEST_MODE).exists() {
        let reason = "this kernel cannot put its devices to sleep for a test (CONFIG_PM_DEBUG)";
        return Err(Skip(reason.to_owned()).into());
    }
    let times = || -> Result<u64> {
        let text = fs::read_to_string(SLEPT).context(SLEPT)?;
        Ok(text.trim().parse()?)
    };
    let before = times()?;
    fs::write(TEST_MODE, "devices").context(TEST_MODE)?;
    fs::write(STATE, "freeze").context("cannot go to sleep")?;
    ensure!(times()? == before + 1, "the devices did not sleep");
    Ok(())
}

fn memory_is_kept() -> Result<()> {
    let device = open()?;
    let data = bytes::random(1, 3 * MIB + 5);
    device.file().write_all_at(&data, 777)?;
    let mapping = device.map(0, PAGE)?;
    mapping.store(16, 0x00c0_ffee_u32)?;
    sleep()?;
    ensure!(
        mapping.load::<u32>(16)? == 0x00c0_ffee,
        "the mapping shows something else"
    );
    let mut back = vec![0; data.len()];
    device.file().read_exact_at(&mut back, 777)?;
    bytes::expect(&back, &data, "what was written before the sleep")?;
    mapping.store(16, 0xbeef_u32)?;
    let mut word = [0; 4];
    device.file().read_exact_at(&mut word, 16)?;
    ensure!(u32::from_le_bytes(word) == 0xbeef, "stores go elsewhere");
    Ok(())
}

fn requests_in_flight_end() -> Result<()> {
    const COUNT: usize = 200;
    let device = open()?;
    let data = bytes::random(2, COUNT * PAGE);
    device.file().write_all_at(&data, SLUGGISH.start)?;
    let context = Context::new(u32::try_from(COUNT)?)?;
    let region = Region::anonymous(COUNT * PAGE)?;
    let mut iocbs = (0..COUNT)
        .map(|index| {
            let start = index * PAGE;
            let place = SLUGGISH.start + start as u64;
            let file = device.file();
            Iocb::transfer(
                Opcode::Read,
                file,
                &region,
                start,
                PAGE,
                place,
                index as u64,
            )
        })
        .collect::<Result<Vec<_>>>()?;
    // SAFETY: The region lives until all has completed, below.
    let taken = unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    ensure!(taken == COUNT, "{taken} taken");
    let slept = sleep();
    let mut moved = 0;
    for event in context.wait(COUNT)? {
        let index = usize::try_from(event.data)?;
        let range = index * PAGE..(index + 1) * PAGE;
        if event.result == PAGE as i64 {
            moved += 1;
            bytes::expect(&region.read(range.clone())?, &data[range], "a read")?;
        } else {
            let lost = -i64::from(Errno::IO.raw_os_error());
            ensure!(
                event.result == lost,
                "request {index} ended with {}",
                event.result
            );
        }
    }
    slept?;
    println!("{moved} of {COUNT} requests were done, the others failed");
    ensure!(context.ready()? == 0, "a request completed twice");
    wait::until_idle(&device)?;
    let mut back = vec![0; data.len()];
    device.file().read_exact_at(&mut back, SLUGGISH.start)?;
    bytes::expect(&back, &data, "a read afterwards")
}

fn a_waiting_read_lets_the_machine_sleep() -> Result<()> {
    let watcher = open()?;
    let data = bytes::random(3, PAGE);
    watcher.file().write_all_at(&data, VERY_SLOW.start)?;
    let child = Child::fork(|| {
        let mut buffer = vec![0; PAGE];
        match open()?.file().read_at(&mut buffer, VERY_SLOW.start) {
            Ok(moved) => {
                ensure!(moved == PAGE, "{moved} bytes");
                bytes::expect(&buffer, &data, "a read across the sleep")
            }
            // The device was reset under it.
            Err(error) => errno::expect::<(), _>(Err(error), Errno::IO, "a waiting read"),
        }
    })?;
    wait::until_busy(&watcher)?;
    sleep()?;
    child.succeed()
}

fn sleeping_again_and_again() -> Result<()> {
    let device = open()?;
    for round in 0..4 {
        let data = bytes::random(round, MIB);
        device.file().write_all_at(&data, round * 11)?;
        sleep().with_context(|| format!("round {round}"))?;
        let mut back = vec![0; data.len()];
        device.file().read_exact_at(&mut back, round * 11)?;
        bytes::expect(&back, &data, "what was written before the sleep")
            .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
