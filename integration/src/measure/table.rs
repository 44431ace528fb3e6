//! Measurements as a table of text.

use std::fmt::Write as _;

use super::{median::median, times::Measurements};

/// The table, with a line for each job and peer.
pub(crate) fn of(measurements: &Measurements) -> String {
    let mut text = format!(
        "kernel {}, {}, medians of {} rounds of {} s\n\n{:<38} {:<38} {:>10} {:>10} {:>6} {:>9}\n",
        measurements.kernel,
        measurements.accelerator,
        measurements.rounds,
        measurements.seconds,
        "job",
        "against",
        "vdma",
        "peer",
        "ratio",
        "target"
    );
    for comparison in &measurements.comparisons {
        for peer in &comparison.peers {
            let target = match peer.target {
                None => String::new(),
                Some(target) => {
                    let (sign, met) = if comparison.more_is_better {
                        (">=", peer.ratio >= target)
                    } else {
                        ("<=", peer.ratio <= target)
                    };
                    format!("{sign}{target} {}", if met { "ok" } else { "no" })
                }
            };
            let line = format!(
                "{:<38} {:<38} {:>10} {:>10} {:>6.2} {target:>9}",
                comparison.job,
                peer.name,
                shown(median(comparison.device.clone()), comparison.unit),
                shown(median(peer.results.clone()), comparison.unit),
                peer.ratio
            );
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

fn shown(value: f64, unit: &str) -> String {
    format!("{value:.0} {unit}")
}
