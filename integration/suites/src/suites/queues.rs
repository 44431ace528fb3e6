//! Several queues, one for each CPU.

use std::{collections::BTreeSet, fs, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::thread::CpuSet;

use crate::support::{bytes, open};

const TWO: &[&str] = &["--num-queues=2"];

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).context("sched_setaffinity")
}

#[guest_test(device_arguments = TWO)]
fn each_cpu_has_its_own_queue() -> Result<()> {
    let device = open()?;
    ensure!(device.info().num_queues == 2, "{:?}", device.info());
    let mut trace = device.trace()?;
    let mut queues = BTreeSet::new();
    for cpu in 0..2 {
        pin(cpu)?;
        for _ in 0..10 {
            device.file().read_exact_at(&mut [0; 100], 0)?;
        }
        let records = trace.read()?.records;
        let of_cpu: BTreeSet<u16> = records.iter().map(|record| record.queue).collect();
        ensure!(of_cpu.len() == 1, "CPU {cpu} used the queues {of_cpu:?}");
        queues.extend(of_cpu);
    }
    ensure!(queues.len() == 2, "both CPUs used the queues {queues:?}");
    let shown = fs::read_to_string("/sys/kernel/debug/vdma/vdma0/queues")?;
    ensure!(shown.lines().count() == 2, "{shown}");
    Ok(())
}

#[guest_test(device_arguments = TWO)]
fn all_queues_work_at_once() -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    pin(number % 2)?;
                    let device = open()?;
                    let offset = number as u64 * 100_000;
                    for round in 0..50 {
                        let data = bytes::random(round, 10_000);
                        device.file().write_all_at(&data, offset)?;
                        let mut back = vec![0; data.len()];
                        device.file().read_exact_at(&mut back, offset)?;
                        bytes::expect(&back, &data, "what was read")?;
                    }
                    Ok(())
                })
            })
            .collect();
        for thread in threads {
            thread.join().ok().context("a thread panicked")??;
        }
        Ok(())
    })
}
