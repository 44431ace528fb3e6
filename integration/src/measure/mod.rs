//! Side-by-side measurements: the device and virtio-blk disks in one guest, the same jobs.

pub(crate) mod chart;
pub(crate) mod instructions;
mod jobs;
mod peers;
pub(crate) mod table;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use guest_agent::{Command, CommandEnd, GuestConfig, Stream};
use jobs::{JOBS, Job};
use peers::{PEERS, Peer};
use serde::Serialize;

use crate::{
    guest::{Bench, GuestSpec},
    progress,
    vm::{CommandIo, Vm},
};

/// Packages that the guest needs.
pub(crate) const PACKAGES: &[&str] = &["fio"];

/// The guest's name, and that of its directory.
const GUEST: &str = "bench";

/// The device's node in the guest.
const DEVICE: &str = "/dev/vdma0";

/// Device memory, and the size of each disk.
const SIZE_MIB: u64 = 64;

/// Room for fio to start and end, beside the time that it measures.
const OVERHEAD: Duration = Duration::from_secs(60);

/// What one job gives on the device and on its peers.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// What is done.
    pub(crate) job: &'static str,
    /// `IOPS`, `MiB/s` or `us`.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// Each round's result on the device.
    pub(crate) device: Vec<f64>,
    /// The same on the peers, in the same order of rounds.
    pub(crate) peers: Vec<PeerResult>,
}

/// What one job gives on a peer.
#[derive(Debug, Serialize)]
pub(crate) struct PeerResult {
    /// Which peer.
    pub(crate) name: &'static str,
    /// Each round's result.
    pub(crate) results: Vec<f64>,
    /// Median over the rounds of the device's result divided by the peer's.
    pub(crate) ratio: f64,
    /// What the ratio has to reach, where that is promised.
    pub(crate) target: Option<f64>,
}

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Measurements {
    /// The guest's kernel.
    pub(crate) kernel: String,
    /// `kvm` or `tcg`.
    pub(crate) accelerator: &'static str,
    /// How often each job ran.
    pub(crate) rounds: u32,
    /// Seconds that each run took.
    pub(crate) seconds: u32,
    /// One for each job.
    pub(crate) comparisons: Vec<Comparison>,
}

/// Boots the guest and runs all jobs, `rounds` times in turn, for `seconds` each.
pub(crate) fn run(bench: &Bench, rounds: u32, seconds: u32, verbose: bool) -> Result<Measurements> {
    let (mut vm, nodes) = boot(bench, verbose)?;
    let mut comparisons: Vec<Comparison> = JOBS.iter().map(|job| empty(job, &nodes)).collect();
    for round in 1..=rounds {
        for (job, comparison) in JOBS.iter().zip(&mut comparisons) {
            let _step = progress::step(format!("round {round} of {rounds}: {}", job.name));
            let result = measure(&mut vm, job, DEVICE, seconds)?;
            comparison.device.push(result);
            for (result, (_, node)) in comparison.peers.iter_mut().zip(&nodes) {
                // The job that the device has no match for runs against its own transfers.
                let (job, node) = match job.against {
                    Some(other) => (other, DEVICE),
                    None => (job, node.as_str()),
                };
                result.results.push(measure(&mut vm, job, node, seconds)?);
            }
        }
    }
    for comparison in &mut comparisons {
        for peer in &mut comparison.peers {
            let pairs = comparison.device.iter().zip(&peer.results);
            peer.ratio = median(pairs.map(|(ours, theirs)| ours / theirs).collect());
        }
    }
    let kernel = vm.kernel().to_owned();
    vm.finish()?;
    Ok(Measurements {
        kernel,
        accelerator: bench.accel.name(),
        rounds,
        seconds,
        comparisons,
    })
}

/// Boots the guest; gives it, and the nodes of its peers.
fn boot(bench: &Bench, verbose: bool) -> Result<(Vm, Vec<(&'static Peer, String)>)> {
    peers::make_files(&bench.run.path().join(GUEST), SIZE_MIB)?;
    let mut vm = bench.boot(&GuestSpec {
        name: GUEST.to_owned(),
        config: GuestConfig {
            device_arguments: vec![format!("--memory-size={SIZE_MIB}M")],
            packages: PACKAGES.iter().map(|&name| name.to_owned()).collect(),
            ..GuestConfig::default()
        },
        qemu_arguments: peers::qemu_arguments(SIZE_MIB),
        verbose,
        ..GuestSpec::default()
    })?;
    let nodes = PEERS
        .iter()
        .map(|peer| Ok((peer, find(&mut vm, peer)?)))
        .collect::<Result<Vec<_>>>()?;
    // Memory that nobody has touched is no fair start.
    for node in nodes.iter().map(|(_, node)| node.as_str()).chain([DEVICE]) {
        let output = format!("of={node}");
        let size = format!("count={SIZE_MIB}");
        sh(
            &mut vm,
            &[
                "dd",
                "if=/dev/urandom",
                &output,
                "bs=1M",
                &size,
                "conv=notrunc",
            ],
            OVERHEAD,
        )?;
    }
    Ok((vm, nodes))
}

fn empty(job: &'static Job, nodes: &[(&'static Peer, String)]) -> Comparison {
    let names: Vec<&'static str> = match job.against {
        Some(other) => vec![other.name],
        None => nodes.iter().map(|(peer, _)| peer.name).collect(),
    };
    Comparison {
        job: job.name,
        unit: job.unit.name(),
        more_is_better: job.unit.more_is_better(),
        device: Vec::new(),
        peers: names
            .into_iter()
            .enumerate()
            .map(|(index, name)| PeerResult {
                name,
                results: Vec::new(),
                ratio: f64::NAN,
                // Promises are made against the peer that moves data as well.
                target: job.target.filter(|_| index == 0),
            })
            .collect(),
    }
}

fn measure(vm: &mut Vm, job: &Job, node: &str, seconds: u32) -> Result<f64> {
    let arguments = job.arguments(node, seconds);
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let limit = OVERHEAD + Duration::from_secs(seconds.into());
    job.result(&sh(vm, &words, limit)?)
        .with_context(|| format!("{} on {node}", job.name))
}

/// The node of a peer's disk.
fn find(vm: &mut Vm, peer: &Peer) -> Result<String> {
    let script = format!("grep -l '^{}' /sys/block/*/serial", peer.serial);
    let path = sh(vm, &["sh", "-c", &script], OVERHEAD)?;
    let name = path.split('/').nth(3).context("no name")?;
    Ok(format!("/dev/{name}"))
}

/// Runs a command in the guest, which has to succeed; gives what it printed.
fn sh(vm: &mut Vm, arguments: &[&str], limit: Duration) -> Result<String> {
    let command = Command {
        arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        ..Command::default()
    };
    let mut output = Output(Vec::new());
    let end = vm.run(command, Some(limit), &mut output)?;
    let text = String::from_utf8_lossy(&output.0).into_owned();
    match end {
        CommandEnd::Exited(0) => Ok(text),
        end => bail!("{} ended with {end:?}: {text}", arguments.join(" ")),
    }
}

/// What a command prints, all of it: the kernel's symbols are many.
struct Output(Vec<u8>);

impl CommandIo for Output {
    fn output(&mut self, _stream: Stream, data: &[u8]) -> Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }
}

/// The middle value; the mean of the two in the middle of an even number.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians_do_not_care_for_outliers() {
        assert!((median(vec![3.0, 900.0, 1.0]) - 3.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_nan());
    }
}
