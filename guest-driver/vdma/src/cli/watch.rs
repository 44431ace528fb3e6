use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{IsTerminal as _, Write as _, stdout},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use vdma::{Device, Operation, TraceRecord};

use super::output::{JSON_VERSION, Output, size};

/// Time between two reads of the trace: short enough for nothing to be lost at 400 000 requests per
/// second.
const READ_INTERVAL: Duration = Duration::from_millis(10);

fn name(record: &TraceRecord) -> &'static str {
    Operation::from_code(record.operation).map_or("?", Operation::name)
}

/// When a trace ends, apart from an interrupt, and what runs meanwhile.
pub(super) struct Limits {
    /// Number of requests to print.
    pub(super) count: Option<u64>,
    /// Seconds until the time-out.
    pub(super) timeout: Option<f64>,
    /// A program to trace, with its arguments; empty for none.
    pub(super) command: Vec<OsString>,
}

impl Limits {
    /// When the trace ends, for the line that says that it is attached.
    fn describe(&self) -> String {
        let mut ends = Vec::new();
        if !self.command.is_empty() {
            ends.push("with the command".to_owned());
        }
        if let Some(count) = self.count {
            ends.push(format!("after {count} requests"));
        }
        if let Some(timeout) = self.timeout {
            ends.push(format!("after {timeout} seconds"));
        }
        if ends.is_empty() {
            ends.push("with an interrupt (Ctrl-C)".to_owned());
        }
        format!("ends {}", ends.join(" or "))
    }
}

/// Prints requests as they complete. The exit status is that of the command, if there is one.
pub(super) fn trace(path: &Path, limits: &Limits, output: Output) -> Result<ExitCode> {
    let device = Device::open(path)?;
    let deadline = deadline(limits.timeout)?;
    let mut trace = device.trace()?;
    // What completes from here on is recorded: a script waits for this line before it submits.
    eprintln!("tracing {}; {}", path.display(), limits.describe());
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
    let mut program = Program::start(&limits.command)?;
    let wanted = limits.count.unwrap_or(u64::MAX);
    let mut printed = 0;
    let mut lost = 0;
    let in_time = loop {
        // This comes before the trace is read, so that the last requests of the program are in it.
        let ended = program.has_ended()?;
        let read = trace.read()?;
        lost += read.lost;
        for record in &read.records {
            if printed < wanted {
                print_record(record, output)?;
                printed += 1;
            }
        }
        if printed == wanted && !program.is_running() || ended && read.records.is_empty() {
            break true;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break false;
        }
        if read.records.is_empty() {
            sleep(READ_INTERVAL);
        }
    };
    if lost > 0 {
        eprintln!("{lost} requests were overwritten before they could be printed");
    }
    match program.finish()? {
        Some(status) => Ok(exit_code(status)),
        None => match limits.count {
            Some(count) if !in_time => {
                bail!("{printed} of {count} requests completed before the time-out")
            }
            _ => Ok(ExitCode::SUCCESS),
        },
    }
}

fn print_record(record: &TraceRecord, output: Output) -> Result<()> {
    let mut out = stdout().lock();
    match output {
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
    }
    .context("cannot print")
}

/// The program that is traced, if there is one.
struct Program {
    child: Option<Child>,
    status: Option<ExitStatus>,
}

impl Program {
    fn start(command: &[OsString]) -> Result<Self> {
        let child = command
            .split_first()
            .map(|(program, arguments)| {
                Command::new(program)
                    .args(arguments)
                    .spawn()
                    .with_context(|| format!("cannot run {}", program.display()))
            })
            .transpose()?;
        Ok(Self {
            child,
            status: None,
        })
    }

    fn has_ended(&mut self) -> Result<bool> {
        if let (Some(child), None) = (&mut self.child, self.status) {
            self.status = child.try_wait().context("cannot wait for the command")?;
        }
        Ok(self.status.is_some())
    }

    fn is_running(&self) -> bool {
        self.child.is_some() && self.status.is_none()
    }

    /// The status of the program. One that still runs is killed: its time is over.
    fn finish(mut self) -> Result<Option<ExitStatus>> {
        if self.is_running()
            && let Some(child) = &mut self.child
        {
            child.kill().context("cannot end the command")?;
            child.wait().context("cannot wait for the command")?;
            bail!("the command was still running at the time-out, and was killed");
        }
        Ok(self.status)
    }
}

/// The exit status as a shell reports it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn deadline(seconds: Option<f64>) -> Result<Option<Instant>> {
    seconds
        .map(|seconds| {
            Duration::try_from_secs_f64(seconds)
                .ok()
                .and_then(|duration| Instant::now().checked_add(duration))
                .with_context(|| format!("a time-out of {seconds} seconds is not possible"))
        })
        .transpose()
}

/// Requests of one operation that completed between two screens.
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
            #[allow(clippy::cast_precision_loss)] // Rounded for display.
            let nanoseconds = *nanoseconds as f64;
            nanoseconds / 1000.0
        })
    }
}

/// Shows rates and latencies of each operation, repeatedly.
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
            sleep(rest.min(READ_INTERVAL));
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
        #[allow(clippy::cast_precision_loss)] // Rounded for display.
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
