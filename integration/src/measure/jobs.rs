//! The jobs: fio's options, and the evaluation of its report.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::peers::SIZE_MIB;

/// A job.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its name in reports.
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
    pub(crate) unit: Unit,
    /// Lower limit of the ratio of device to peer (for latencies, its upper limit).
    pub(crate) target: Option<f64>,
    /// The job that it is compared with on the same device, instead of itself on the peers.
    pub(crate) against: Option<&'static Job>,
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// Requests per second.
    Rate,
    /// Bytes per second.
    Bandwidth,
    /// Median time of a request.
    Latency,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rate => "IOPS",
            Self::Bandwidth => "MiB/s",
            Self::Latency => "us",
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        !matches!(self, Self::Latency)
    }
}

const fn job(
    name: &'static str,
    arguments: &'static [&'static str],
    unit: Unit,
    target: Option<f64>,
) -> Job {
    Job {
        name,
        arguments,
        unit,
        target,
        against: None,
    }
}

/// The CPU copies device memory through the BAR.
const BAR_COPY: Job = job(
    "1 MiB copy by the CPU through the BAR",
    &["--ioengine=mmap", "--rw=read", "--bs=1M"],
    Unit::Bandwidth,
    None,
);

/// All jobs.
pub(crate) const JOBS: &[Job] = &[
    job(
        "4 KiB random read, psync",
        &["--ioengine=psync", "--rw=randread", "--bs=4k"],
        Unit::Latency,
        Some(0.75),
    ),
    job(
        "4 KiB random write, psync",
        &["--ioengine=psync", "--rw=randwrite", "--bs=4k"],
        Unit::Latency,
        Some(0.75),
    ),
    job(
        "4 KiB random read, io_uring depth 32",
        &[
            "--ioengine=io_uring",
            "--iodepth=32",
            "--rw=randread",
            "--bs=4k",
        ],
        Unit::Rate,
        Some(1.5),
    ),
    job(
        "4 KiB random write, io_uring depth 32",
        &[
            "--ioengine=io_uring",
            "--iodepth=32",
            "--rw=randwrite",
            "--bs=4k",
        ],
        Unit::Rate,
        Some(1.5),
    ),
    job(
        "1 MiB read, io_uring depth 4",
        &["--ioengine=io_uring", "--iodepth=4", "--rw=read", "--bs=1M"],
        Unit::Bandwidth,
        Some(1.5),
    ),
    job(
        "1 MiB write, io_uring depth 4",
        &[
            "--ioengine=io_uring",
            "--iodepth=4",
            "--rw=write",
            "--bs=1M",
        ],
        Unit::Bandwidth,
        Some(1.5),
    ),
    Job {
        against: Some(&BAR_COPY),
        ..job(
            "1 MiB read, psync",
            &["--ioengine=psync", "--rw=read", "--bs=1M"],
            Unit::Bandwidth,
            Some(5.0),
        )
    },
];

impl Job {
    /// The command line for `node`.
    pub(crate) fn arguments(&self, node: &str, seconds: u32) -> Vec<String> {
        [
            "fio",
            "--name=job",
            "--output-format=json",
            "--direct=1",
            "--thread",
            "--time_based",
        ]
        .into_iter()
        .chain(self.arguments.iter().copied())
        .map(str::to_owned)
        .chain([
            format!("--filename={node}"),
            format!("--size={SIZE_MIB}M"),
            format!("--runtime={seconds}"),
        ])
        .collect()
    }

    /// The result in fio's report.
    pub(crate) fn result(&self, report: &str) -> Result<f64> {
        // Notes may precede it.
        let json = report.find('{').map_or("", |start| &report[start..]);
        let report: Value = serde_json::from_str(json).context("fio's report is malformed")?;
        let job = &report["jobs"][0];
        ensure!(job["error"] == 0, "fio reports error {}", job["error"]);
        let direction = if job["read"]["total_ios"].as_u64() > Some(0) {
            &job["read"]
        } else {
            &job["write"]
        };
        let value = match self.unit {
            Unit::Rate => direction["iops"].as_f64(),
            Unit::Bandwidth => direction["bw_bytes"]
                .as_f64()
                .map(|bytes| bytes / 1048576.0),
            Unit::Latency => direction["clat_ns"]["percentile"]["50.000000"]
                .as_f64()
                .map(|nanoseconds| nanoseconds / 1000.0),
        };
        value
            .filter(|value| *value > 0.0)
            .with_context(|| format!("fio's report has no {}", self.unit.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_off_the_direction_that_was_used() {
        let report = r#"note: x
            {"jobs": [{"error": 0, "read": {"total_ios": 0, "iops": 0.0},
            "write": {"total_ios": 7, "iops": 12.5, "bw_bytes": 2097152,
            "clat_ns": {"percentile": {"50.000000": 1500}}}}]}"#;
        assert!((JOBS[0].result(report).unwrap() - 1.5).abs() < 1e-9);
        assert!((JOBS[2].result(report).unwrap() - 12.5).abs() < 1e-9);
        assert!((BAR_COPY.result(report).unwrap() - 2.0).abs() < 1e-9);
        assert!(BAR_COPY.result("").is_err());
        assert!(
            BAR_COPY
                .result(&report.replace("\"error\": 0", "\"error\": 5"))
                .is_err()
        );
    }
}
