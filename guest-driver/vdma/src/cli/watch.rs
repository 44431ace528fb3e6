use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Write as _, stdout},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use vdma::{Device, Operation, TraceRecord};

use super::{
    Output,
    show::{JSON_VERSION, size},
};

/// Time between two looks at the trace: short enough for nothing to be lost at 400 000 requests per
/// second.
const LOOK: Duration = Duration::from_millis(10);

fn name(record: &TraceRecord) -> &'static str {
    Operation::from_code(record.operation).map_or("?", Operation::name)
}

/// Prints requests as they complete, `count` of them, or for `seconds`.
pub(super) fn trace(
    path: &Path,
    count: Option<u64>,
    seconds: Option<f64>,
    output: Output,
) -> Result<()> {
    let device = Device::open(path)?;
    let mut trace = device.trace()?;
    let deadline = deadline(seconds)?;
    let mut left = count.unwrap_or(u64::MAX);
    let mut lost = 0;
    if output == Output::Text {
        print_line!(
            "{:>16} {:>5} {:<12} {:>12} {:>10} {:>5} {:>5} {:>10} result",
            "time",
            "queue",
            "operation",
            "offset",
            "length",
            "pages",
            "segs",
            "latency"
        )?;
    }
    while left > 0 && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        let read = trace.read()?;
        lost += read.lost;
        let mut out = stdout().lock();
        for record in read
            .records
            .iter()
            .take(usize::try_from(left).unwrap_or(usize::MAX))
        {
            left -= 1;
            let printed = match output {
                Output::Text => writeln!(
                    out,
                    "{:>9}.{:06} {:>5} {:<12} {:>#12x} {:>10} {:>5} {:>5} {:>7} µs {}",
                    record.time / 1_000_000_000,
                    record.time / 1000 % 1_000_000,
                    record.queue,
                    name(record),
                    record.offset,
                    record.length,
                    record.pages,
                    record.segments,
                    record.latency / 1000,
                    record.result
                ),
                Output::Json => writeln!(
                    out,
                    "{}",
                    json!({
                        "version": JSON_VERSION,
                        "time": record.time,
                        "queue": record.queue,
                        "operation": name(record),
                        "offset": record.offset,
                        "length": record.length,
                        "transferred": record.transferred,
                        "pages": record.pages,
                        "segments": record.segments,
                        "latency": record.latency,
                        "result": record.result,
                    })
                ),
            };
            printed.context("cannot print")?;
        }
        drop(out);
        if read.records.is_empty() {
            sleep(LOOK);
        }
    }
    if lost > 0 {
        eprintln!("{lost} requests were overwritten before they could be shown");
    }
    Ok(())
}

fn deadline(seconds: Option<f64>) -> Result<Option<Instant>> {
    seconds
        .map(|seconds| {
            Duration::try_from_secs_f64(seconds)
                .map(|duration| Instant::now() + duration)
                .with_context(|| format!("{seconds} seconds is not a time"))
        })
        .transpose()
}

/// What completed between two screens, of one operation.
#[derive(Default)]
struct Sum {
    requests: u64,
    bytes: u64,
    failed: u64,
    latencies: Vec<u64>,
}

impl Sum {
    fn add(&mut self, record: &TraceRecord) {
        self.requests += 1;
        self.bytes += record.transferred;
        self.failed += u64::from(record.result != 0);
        self.latencies.push(record.latency);
    }

    /// The latency, in microseconds, that `percent` of the requests stayed below.
    fn percentile(&mut self, percent: usize) -> f64 {
        self.latencies.sort_unstable();
        let index = (self.latencies.len() * percent / 100).min(self.latencies.len() - 1);
        self.latencies.get(index).map_or(0.0, |nanoseconds| {
            #[allow(clippy::cast_precision_loss)] // For people.
            let nanoseconds = *nanoseconds as f64;
            nanoseconds / 1000.0
        })
    }
}

/// Shows rates and latencies of each operation, again and again.
pub(super) fn top(path: &Path, interval: f64, rounds: Option<u64>) -> Result<()> {
    let interval = Duration::try_from_secs_f64(interval)
        .ok()
        .filter(|interval| !interval.is_zero())
        .with_context(|| format!("an interval of {interval} seconds is not possible"))?;
    let device = Device::open(path)?;
    let mut trace = device.trace()?;
    let mut left = rounds.unwrap_or(u64::MAX);
    while left > 0 {
        left -= 1;
        let begin = Instant::now();
        let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
        let mut lost = 0;
        loop {
            let read = trace.read()?;
            lost += read.lost;
            for record in &read.records {
                sums.entry(name(record)).or_default().add(record);
            }
            let rest = interval.saturating_sub(begin.elapsed());
            if rest.is_zero() {
                break;
            }
            sleep(rest.min(LOOK));
        }
        let in_flight = device.device_statistics()?.in_flight;
        print_screen(&device, begin.elapsed(), &mut sums, lost, in_flight)?;
    }
    Ok(())
}

fn print_screen(
    device: &Device,
    elapsed: Duration,
    sums: &mut BTreeMap<&str, Sum>,
    lost: u64,
    in_flight: u64,
) -> Result<()> {
    let mut out = stdout().lock();
    if out.is_terminal() {
        write!(out, "\x1b[H\x1b[2J")?;
    }
    writeln!(
        out,
        "{}  {} of device memory  in flight {in_flight}  lost {lost}",
        device.path().display(),
        size(device.info().memory_size)
    )?;
    writeln!(
        out,
        "{:<12} {:>12} {:>12} {:>8} {:>10} {:>10}",
        "operation", "requests/s", "MiB/s", "failed", "p50 µs", "p99 µs"
    )?;
    for (name, sum) in sums {
        #[allow(clippy::cast_precision_loss)] // For people.
        let (requests, mib) = (
            sum.requests as f64 / elapsed.as_secs_f64(),
            sum.bytes as f64 / elapsed.as_secs_f64() / f64::from(1 << 20),
        );
        let (median, late) = (sum.percentile(50), sum.percentile(99));
        writeln!(
            out,
            "{name:<12} {requests:>12.0} {mib:>12.1} {:>8} {median:>10.1} {late:>10.1}",
            sum.failed
        )?;
    }
    out.flush()?;
    Ok(())
}
