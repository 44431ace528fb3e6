//! The text exposition format of Prometheus (version 0.0.4).

use std::fmt::{self, Write};

use super::{
    counters::{DeviceMetrics, OperationMetrics, QueueMetrics},
    instruments::{BUCKETS, Histogram},
};

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
    ("bytes", "Data bytes processed.", |o| o.bytes.get()),
];

const QUEUE_COUNTS: [(&str, &str, QueueCount); 4] = [
    ("kicks", "Kicks received.", |q| q.kicks.get()),
    ("calls", "Calls sent to the driver.", |q| q.calls.get()),
    ("poll_hits", "Requests found by busy-polling.", |q| {
        q.poll_hits.get()
    }),
    ("ring_errors", "Errors that stopped the queue.", |q| {
        q.ring_errors.get()
    }),
];

/// Every queue of every device, with its labels.
type Queues<'a> = [(String, &'a QueueMetrics)];

fn write_all(out: &mut String, devices: &[(&str, &DeviceMetrics)]) -> fmt::Result {
    let queues: Vec<(String, &QueueMetrics)> = devices
        .iter()
        .flat_map(|(device, metrics)| {
            let queues = metrics.queues().iter().enumerate();
            queues.map(move |(index, queue)| {
                let labels = format!("device=\"{device}\",queue=\"{index}\"");
                (labels, queue.as_ref())
            })
        })
        .collect();
    write_front_ends(out, devices)?;
    write_operations(out, &queues)?;
    write_queues(out, &queues)?;
    write_faults(out, &queues)?;
    write_batches(out, &queues)?;
    write_latencies(out, &queues)
}

fn write_front_ends(out: &mut String, devices: &[(&str, &DeviceMetrics)]) -> fmt::Result {
    let help = "Front ends that have connected.";
    head(out, "front_ends_total", "counter", help)?;
    for (device, metrics) in devices {
        let count = metrics.front_ends.get();
        writeln!(out, "vdma_front_ends_total{{device=\"{device}\"}} {count}")?;
    }
    Ok(())
}

fn write_operations(out: &mut String, queues: &Queues<'_>) -> fmt::Result {
    for (name, help, count) in OPERATION_COUNTS {
        head(out, &format!("{name}_total"), "counter", help)?;
        for (labels, queue) in queues {
            for (operation, counters) in queue.by_operation() {
                let count = count(counters);
                writeln!(
                    out,
                    "vdma_{name}_total{{{labels},operation=\"{operation}\"}} {count}"
                )?;
            }
        }
    }
    Ok(())
}

fn write_queues(out: &mut String, queues: &Queues<'_>) -> fmt::Result {
    for (name, help, count) in QUEUE_COUNTS {
        head(out, &format!("{name}_total"), "counter", help)?;
        for (labels, queue) in queues {
            writeln!(out, "vdma_{name}_total{{{labels}}} {}", count(queue))?;
        }
    }
    Ok(())
}

fn write_faults(out: &mut String, queues: &Queues<'_>) -> fmt::Result {
    head(out, "faults_total", "counter", "Faults injected.")?;
    for (labels, queue) in queues {
        for (kind, count) in queue.faults().filter(|(_, count)| *count > 0) {
            writeln!(out, "vdma_faults_total{{{labels},kind=\"{kind}\"}} {count}")?;
        }
    }
    Ok(())
}

fn write_batches(out: &mut String, queues: &Queues<'_>) -> fmt::Result {
    let help = "Requests published at a time.";
    head(out, "batch_requests", "histogram", help)?;
    for (labels, queue) in queues {
        histogram(out, "batch_requests", labels, &queue.batches, 11, 1.0)?;
    }
    Ok(())
}

fn write_latencies(out: &mut String, queues: &Queues<'_>) -> fmt::Result {
    let name = "request_seconds";
    let help = "Time from the beginning of a request's batch to its publication.";
    head(out, name, "histogram", help)?;
    for (labels, queue) in queues {
        for (operation, counters) in queue.by_operation() {
            let labels = format!("{labels},operation=\"{operation}\"");
            histogram(out, name, &labels, &counters.latency, BUCKETS, 1e-9)?;
        }
    }
    Ok(())
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP vdma_{name} {help}\n# TYPE vdma_{name} {kind}")
}

/// Writes the first `buckets` buckets, which have to hold all values, in units of `scale`.
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
        // Values are integers: below 2^n means at most 2^n - 1.
        let bound = ((1u64 << bucket) - 1) as f64 * scale;
        writeln!(out, "vdma_{name}_bucket{{{labels},le=\"{bound}\"}} {seen}")?;
    }
    let total: u64 = counts.iter().sum();
    let sum = histogram.sum() as f64 * scale;
    writeln!(out, "vdma_{name}_bucket{{{labels},le=\"+Inf\"}} {total}")?;
    writeln!(out, "vdma_{name}_sum{{{labels}}} {sum}")?;
    writeln!(out, "vdma_{name}_count{{{labels}}} {total}")
}
