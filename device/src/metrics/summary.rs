//! The counters in a form for people to read.

use super::counters::DeviceMetrics;

/// A line for each queue of a device and for each operation that was requested.
#[must_use]
pub fn summary_lines(name: &str, metrics: &DeviceMetrics) -> Vec<String> {
    let mut lines = vec![format!(
        "{name}: {} front-end connections",
        metrics.front_ends.get()
    )];
    for (index, queue) in metrics.queues().iter().enumerate() {
        let faults: u64 = queue.faults().map(|(_, count)| count).sum();
        lines.push(format!(
            "  queue {index}: {} kicks, {} calls, {} poll hits, batch size p50 <= {}, \
             {} ring errors, {faults} faults injected",
            queue.kicks.get(),
            queue.calls.get(),
            queue.poll_hits.get(),
            queue.batches.quantile(0.5),
            queue.ring_errors.get(),
        ));
        for (operation, counters) in queue.by_operation() {
            lines.push(format!(
                "    {operation:<12} {:>12} requests {:>8} errors {:>16} bytes  \
                 p50 < {} ns, p99 < {} ns",
                counters.requests.get(),
                counters.errors.get(),
                counters.bytes.get(),
                counters.latency.quantile(0.5) + 1,
                counters.latency.quantile(0.99) + 1,
            ));
        }
    }
    lines
}
