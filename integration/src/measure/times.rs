//! Measurements of time: the same jobs on the device and on virtio-blk disks, in one guest.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    guest::{DEVICE, OVERHEAD, boot, sh},
    jobs::{JOBS, Job},
    median::median,
    peers::Peer,
};
use crate::{host::progress, testbed::boot::Testbed, vm::running::Vm};

/// The results of one job on the device and its peers.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// Name of the job.
    pub(crate) job: &'static str,
    /// `IOPS`, `MiB/s` or `us`.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// Each round's result on the device.
    pub(crate) device: Vec<f64>,
    /// The results on the peers, in the same order of rounds.
    pub(crate) peers: Vec<PeerResult>,
}

/// The results of one job on a peer.
#[derive(Debug, Serialize)]
pub(crate) struct PeerResult {
    /// Name of the peer.
    pub(crate) name: &'static str,
    /// Each round's result.
    pub(crate) results: Vec<f64>,
    /// Median over the rounds of the device's result divided by the peer's.
    pub(crate) ratio: f64,
    /// Limit of the ratio, if there is a target.
    pub(crate) target: Option<f64>,
}

/// All measurements, and their conditions.
#[derive(Debug, Serialize)]
pub(crate) struct Measurements {
    /// The guest's kernel.
    pub(crate) kernel: String,
    /// `kvm` or `tcg`.
    pub(crate) accelerator: &'static str,
    /// Number of runs of each job.
    pub(crate) rounds: u32,
    /// Duration of each run, in seconds.
    pub(crate) seconds: u32,
    /// One for each job.
    pub(crate) comparisons: Vec<Comparison>,
}

/// Boots the guest and runs all jobs, `rounds` times in alternation, for `seconds` each.
pub(crate) fn run(
    testbed: &Testbed,
    rounds: u32,
    seconds: u32,
    verbose: bool,
) -> Result<Measurements> {
    let (mut vm, nodes) = boot(testbed, verbose)?;
    let mut comparisons: Vec<Comparison> = JOBS.iter().map(|job| empty(job, &nodes)).collect();
    for round in 1..=rounds {
        for (job, comparison) in JOBS.iter().zip(&mut comparisons) {
            let _step = progress::step(format!("round {round} of {rounds}: {}", job.name));
            let result = measure(&mut vm, job, DEVICE, seconds)?;
            comparison.device.push(result);
            for (result, (_, node)) in comparison.peers.iter_mut().zip(&nodes) {
                // A job that virtio-blk cannot do is compared with the device's own transfers.
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
        accelerator: testbed.accel.name(),
        rounds,
        seconds,
        comparisons,
    })
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
                // Targets apply to the first peer, which moves data as well.
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
