//! One screen of numbers for people.

use super::DeviceMetrics;
use crate::fault::FaultKind;

/// What a device has done, a line for each queue and for each operation that was used.
#[must_use]
pub fn summary_lines(name: &str, metrics: &DeviceMetrics) -> Vec<String> {
    let mut lines = vec![format!(
        "{name}: {} front ends so far",
        metrics.front_ends.get()
    )];
    for (index, queue) in metrics.queues().iter().enumerate() {
        let faults: u64 = FaultKind::ALL.iter().map(|&kind| queue.faults(kind)).sum();
        lines.push(format!(
            "  queue {index}: {} kicks, {} calls, {} poll hits, {} per batch at most (median), \
             {} ring errors, {faults} faults injected",
            queue.kicks.get(),
            queue.calls.get(),
            queue.poll_hits.get(),
            queue.batches.quantile(0.5),
            queue.ring_errors.get(),
        ));
        for (operation, counters) in queue.named() {
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
