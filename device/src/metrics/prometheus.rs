//! The text exposition format of Prometheus (version 0.0.4).

use std::fmt::{self, Write};

use super::{BUCKETS, DeviceMetrics, Histogram, OperationMetrics, QueueMetrics};
use crate::fault::FaultKind;

/// All counters of `devices`; the first of a pair is the device's label.
#[must_use]
pub fn prometheus_text(devices: &[(&str, &DeviceMetrics)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut text, devices);
    text
}

type OperationCount = fn(&OperationMetrics) -> u64;
type QueueCount = fn(&QueueMetrics) -> u64;

const OPERATION_COUNTS: [(&str, &str, OperationCount); 3] = [
    ("requests", "Requests completed.", |o| o.requests.get()),
    ("errors", "Requests that failed.", |o| o.errors.get()),
    ("bytes", "Data bytes worked on.", |o| o.bytes.get()),
];

const QUEUE_COUNTS: [(&str, &str, QueueCount); 4] = [
    ("kicks", "Kicks taken.", |q| q.kicks.get()),
    ("calls", "Calls made.", |q| q.calls.get()),
    ("poll_hits", "Requests found by polling.", |q| {
        q.poll_hits.get()
    }),
    (
        "ring_errors",
        "Times that the ring was found corrupt.",
        |q| q.ring_errors.get(),
    ),
];

fn write_all(out: &mut String, devices: &[(&str, &DeviceMetrics)]) -> fmt::Result {
    let queues = || {
        devices.iter().flat_map(|(device, metrics)| {
            let queues = metrics.queues().iter().enumerate();
            queues.map(move |(index, queue)| {
                (format!("device=\"{device}\",queue=\"{index}\""), queue)
            })
        })
    };

    head(
        out,
        "front_ends_total",
        "counter",
        "Front ends that have connected.",
    )?;
    for (device, metrics) in devices {
        let count = metrics.front_ends.get();
        writeln!(out, "vdma_front_ends_total{{device=\"{device}\"}} {count}")?;
    }
    for (name, help, count) in OPERATION_COUNTS {
        head(out, &format!("{name}_total"), "counter", help)?;
        for (labels, queue) in queues() {
            for (operation, counters) in queue.named() {
                let count = count(counters);
                writeln!(
                    out,
                    "vdma_{name}_total{{{labels},operation=\"{operation}\"}} {count}"
                )?;
            }
        }
    }
    for (name, help, count) in QUEUE_COUNTS {
        head(out, &format!("{name}_total"), "counter", help)?;
        for (labels, queue) in queues() {
            writeln!(out, "vdma_{name}_total{{{labels}}} {}", count(queue))?;
        }
    }
    head(out, "faults_total", "counter", "Faults injected.")?;
    for (labels, queue) in queues() {
        for kind in FaultKind::ALL {
            let count = queue.faults(kind);
            if count > 0 {
                let kind = kind.name();
                writeln!(out, "vdma_faults_total{{{labels},kind=\"{kind}\"}} {count}")?;
            }
        }
    }
    head(
        out,
        "batch_requests",
        "histogram",
        "Requests published at a time.",
    )?;
    for (labels, queue) in queues() {
        histogram(out, "batch_requests", &labels, &queue.batches, 11, 1.0)?;
    }
    let help = "Time from the fetch of a request's batch to its publication.";
    head(out, "request_seconds", "histogram", help)?;
    for (labels, queue) in queues() {
        for (operation, counters) in queue.named() {
            let labels = format!("{labels},operation=\"{operation}\"");
            histogram(
                out,
                "request_seconds",
                &labels,
                &counters.latency,
                BUCKETS,
                1e-9,
            )?;
        }
    }
    Ok(())
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP vdma_{name} {help}\n# TYPE vdma_{name} {kind}")
}

/// Writes the first `buckets` buckets, which hold all values, in units of `scale`.
#[allow(clippy::cast_precision_loss)] // Bounds are powers of two, and a sum may be rounded.
fn histogram(
    out: &mut String,
    name: &str,
    labels: &str,
    histogram: &Histogram,
    buckets: usize,
    scale: f64,
) -> fmt::Result {
    let counts = histogram.counts();
    let mut seen = 0;
    for (bucket, count) in counts.iter().enumerate().take(buckets.min(BUCKETS - 1)) {
        seen += count;
        // Values are whole numbers: below 2^n means at most 2^n - 1.
        let bound = ((1u64 << bucket) - 1) as f64 * scale;
        writeln!(out, "vdma_{name}_bucket{{{labels},le=\"{bound}\"}} {seen}")?;
    }
    let total: u64 = counts.iter().sum();
    let sum = histogram.sum() as f64 * scale;
    writeln!(out, "vdma_{name}_bucket{{{labels},le=\"+Inf\"}} {total}")?;
    writeln!(out, "vdma_{name}_sum{{{labels}}} {sum}")?;
    writeln!(out, "vdma_{name}_count{{{labels}}} {total}")
}
