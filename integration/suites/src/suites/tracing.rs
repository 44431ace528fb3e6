//! Observation: the trace in shared memory, tracepoints, debugfs.

use std::{
    fs,
    os::{fd::FromRawFd as _, unix::fs::FileExt as _},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags},
};
use vdma::Operation;

use crate::support::{
    PAGE,
    child::Child,
    drop_privileges, errno, faults, open, program,
    region::Region,
    uring::{self, Uring},
};

#[guest_test]
fn the_trace_records_completed_requests() -> Result<()> {
    let device = open()?;
    device.nop()?;
    let mut trace = device.trace()?;
    ensure!(
        trace.read()?.records.is_empty(),
        "records from before the trace was opened"
    );
    device.file().write_all_at(&[1; 5000], 12_345)?;
    device.file().read_exact_at(&mut [0; 100], 7)?;
    device.fill(64, 1 << 20, 0)?;
    let read = trace.read()?;
    ensure!(read.lost == 0, "{} lost", read.lost);
    let seen: Vec<_> = read
        .records
        .iter()
        .map(|record| {
            (
                record.operation,
                record.offset,
                record.length,
                record.transferred,
                record.result,
            )
        })
        .collect();
    let expected = [
        (Operation::Write.code(), 12_345, 5000, 5000, 0),
        (Operation::Read.code(), 7, 100, 100, 0),
        (Operation::Fill.code(), 64, 1 << 20, 1 << 20, 0),
    ];
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    let write = &read.records[0];
    ensure!(
        (2..=3).contains(&write.pages) && write.segments >= 1,
        "{write:?}"
    );
    for pair in read.records.windows(2) {
        ensure!(pair[0].time <= pair[1].time, "time goes backwards");
        ensure!(
            pair[1].stamp == pair[0].stamp + 2,
            "a sequence number is missing"
        );
    }
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn the_trace_records_failures_and_latencies() -> Result<()> {
    let device = open()?;
    let mut trace = device.trace()?;
    errno::expect(
        device.file().read_at(&mut [0; 10], faults::IO_ERROR),
        Errno::IO,
        "a failing read",
    )?;
    device
        .file()
        .read_exact_at(&mut [0; 10], faults::SLOW.start)?;
    let records = trace.read()?.records;
    ensure!(records.len() == 2, "{records:?}");
    ensure!(
        records[0].result == -Errno::IO.raw_os_error(),
        "{:?}",
        records[0]
    );
    ensure!(
        records[1].latency >= 250_000_000,
        "a delay of a quarter of a second, and {:?}",
        records[1]
    );
    Ok(())
}

#[guest_test(timeout = 120)]
fn slow_readers_learn_how_many_records_were_lost() -> Result<()> {
    let device = open()?;
    let mut trace = device.trace()?;
    for _ in 0..5000 {
        device.nop()?;
    }
    let read = trace.read()?;
    ensure!(
        read.records.len() as u64 + read.lost == 5000 && read.lost > 0,
        "{} records and {} lost",
        read.records.len(),
        read.lost
    );
    device.nop()?;
    let read = trace.read()?;
    ensure!(read.records.len() == 1 && read.lost == 0, "{read:?}");
    Ok(())
}

/// The file of a trace, as the driver creates it, and its length.
fn trace_file() -> Result<(fs::File, usize)> {
    let device = open()?;
    let mut trace = vdma::protocol::Trace::default();
    let request = libc::Ioctl::from(vdma::protocol::IOCTL_TRACE);
    // SAFETY: The driver fills the structure, which is valid.
    let result = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(device.file()),
            request,
            &raw mut trace,
        )
    };
    ensure!(
        result == 0,
        "ioctl TRACE: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: The driver has just opened the file for this process, which has no other owner for
    // it.
    let file = unsafe { fs::File::from_raw_fd(i32::try_from(trace.file)?) };
    Ok((file, usize::try_from(trace.length)?))
}

#[guest_test]
fn the_trace_is_vmalloc_memory_and_read_only() -> Result<()> {
    let (file, length) = trace_file()?;
    let list = fs::read_to_string("/proc/vmallocinfo").context("/proc/vmallocinfo")?;
    let line = list
        .lines()
        .find(|line| line.contains("vdma") && line.contains("user"));
    ensure!(line.is_some(), "/proc/vmallocinfo does not show the trace");
    let writable = Region::file(&file, 0, length, MapFlags::SHARED).map(drop);
    ensure!(writable.is_err(), "the trace can be mapped for writing");
    let region = Region::file_with(&file, 0, length, ProtFlags::READ, MapFlags::SHARED)?;
    ensure!(
        region
            .protect(MprotectFlags::READ | MprotectFlags::WRITE)
            .is_err(),
        "mprotect"
    );
    region.read(0..length)?;
    let longer = Region::file_with(&file, 0, length + PAGE, ProtFlags::READ, MapFlags::SHARED);
    errno::expect(longer.map(drop), Errno::INVAL, "more than the trace")
}

#[guest_test]
fn the_trace_needs_privileges() -> Result<()> {
    let device = open()?;
    Child::fork(|| {
        drop_privileges()?;
        errno::expect_vdma(
            device.trace().map(drop),
            Errno::PERM,
            "the trace for a user",
        )?;
        let mut memory = [0; 10];
        errno::expect_vdma(
            device.explain(&mut memory, 0),
            Errno::PERM,
            "addresses for a user",
        )
    })?
    .succeed()
}

#[guest_test]
fn the_trace_outlives_the_device_file() -> Result<()> {
    let mut trace = open()?.trace()?;
    open()?.nop()?;
    ensure!(trace.read()?.records.len() == 1, "a record of another file");
    Ok(())
}

const TRACING: &str = "/sys/kernel/tracing";

/// The driver's events that ftrace records while `run` runs.
fn events_during(run: impl FnOnce() -> Result<()>) -> Result<String> {
    let events = format!("{TRACING}/events/vdma");
    if !std::path::Path::new(&events).exists() {
        program::run(&["mount", "-t", "tracefs", "tracefs", TRACING])
            .context("this kernel shows no tracepoints")?;
    }
    fs::write(format!("{events}/enable"), "1")?;
    let done = run();
    fs::write(format!("{events}/enable"), "0")?;
    done?;
    let trace = fs::read_to_string(format!("{TRACING}/trace"))?;
    fs::write(format!("{TRACING}/trace"), "")?;
    Ok(trace)
}

#[guest_test]
fn tracepoints_fire() -> Result<()> {
    let device = open()?;
    let trace = events_during(|| Ok(device.file().write_all_at(&[1; 300], 4096)?))?;
    for wanted in [
        "vdma_submit: vdma0 queue=0 operation=write offset=0x1000 length=300",
        "vdma_complete: vdma0 queue=0 operation=write offset=0x1000 length=300 result=0",
    ] {
        ensure!(trace.contains(wanted), "no \"{wanted}\" in:\n{trace}");
    }
    Ok(())
}

/// Requests complete in the interrupt handler, without a thread being woken in between.
#[guest_test]
fn completions_run_in_interrupt_context() -> Result<()> {
    const COUNT: usize = 20;
    let device = open()?;
    let region = Region::anonymous(PAGE)?;
    let mut ring = Uring::new(1)?;
    let trace = events_during(|| {
        for _ in 0..COUNT {
            let read = uring::read(device.file(), &region, 0..PAGE, 0);
            // SAFETY: The region lives until the request has completed.
            unsafe { ring.run(&[read]) }?;
        }
        Ok(())
    })?;
    // "TASK-PID [CPU] FLAGS TIME: EVENT: ...", with an h among the flags in an interrupt.
    let in_interrupt = |line: &&str| {
        let flags = line.split_once("] ").map_or("", |(_, rest)| rest);
        let flags = flags.split_whitespace().next().unwrap_or("");
        flags.contains(['h', 'H'])
    };
    let completions = || trace.lines().filter(|line| line.contains("vdma_complete:"));
    ensure!(completions().count() == COUNT, "{trace}");
    ensure!(
        completions().filter(in_interrupt).count() >= COUNT / 2,
        "{trace}"
    );
    Ok(())
}

#[guest_test]
fn debugfs_shows_the_counts() -> Result<()> {
    let device = open()?;
    let path = "/sys/kernel/debug/vdma/vdma0";
    device.nop()?;
    let text = fs::read_to_string(format!("{path}/statistics")).context("is debugfs mounted?")?;
    let statistics = device.device_statistics()?;
    for (name, value) in vdma::Statistics::NAMES.into_iter().zip(statistics.values()) {
        ensure!(
            text.contains(&format!("{name} {value}\n")),
            "no {name} {value} in:\n{text}"
        );
    }
    let queues = fs::read_to_string(format!("{path}/queues"))?;
    ensure!(queues.contains("0 in_flight 0"), "{queues}");
    Ok(())
}

#[guest_test]
fn vdma_trace_and_top_show_requests() -> Result<()> {
    // Both have to see requests that are made after they have started, whenever that is.
    let shell = "vdma trace -c 3 -s 20 -o json >/tmp/trace.json & trace=$!; \
                 vdma top -i 2 -r 1 >/tmp/top.txt & top=$!; \
                 while kill -0 $trace 2>/dev/null || kill -0 $top 2>/dev/null; do \
                 dd if=/dev/zero of=/dev/vdma0 bs=64K count=10 2>/dev/null; done; \
                 wait $trace && wait $top";
    program::run(&["sh", "-c", shell])?;
    let trace = fs::read_to_string("/tmp/trace.json")?;
    ensure!(trace.lines().count() == 3, "{trace}");
    let first: serde_json::Value = serde_json::from_str(trace.lines().next().context("no line")?)?;
    ensure!(
        first["operation"] == "write" && first["length"] == 65536,
        "{first}"
    );
    let top = fs::read_to_string("/tmp/top.txt")?;
    ensure!(top.lines().any(|line| line.starts_with("write ")), "{top}");
    Ok(())
}

#[guest_test]
fn vdma_trace_runs_a_command_and_ends() -> Result<()> {
    let trace = |arguments: &[&str]| {
        let output = Command::new("vdma").arg("trace").args(arguments).output()?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            errors.starts_with("tracing /dev/vdma0; ends "),
            "{arguments:?}: {errors}"
        );
        let records = String::from_utf8_lossy(&output.stdout).lines().count();
        Ok((output.status.code(), records, errors))
    };
    let dd = [
        "dd",
        "if=/dev/zero",
        "of=/dev/vdma0",
        "bs=64K",
        "count=3",
        "status=none",
    ];
    // The header, and one line for each request.
    let (status, lines, errors) = trace(&[&["--count", "2", "--"][..], &dd].concat())?;
    ensure!(
        (status, lines) == (Some(0), 3),
        "{status:?}, {lines} lines: {errors}"
    );
    let (status, lines, errors) = trace(&[&["--"][..], &dd].concat())?;
    ensure!(
        (status, lines) == (Some(0), 4),
        "{status:?}, {lines} lines: {errors}"
    );
    // The exit status is the command's.
    let (status, ..) = trace(&["--", "sh", "-c", "exit 7"])?;
    ensure!(status == Some(7), "{status:?}");
    // A time limit ends the trace, and a command that still runs.
    let (status, lines, _) = trace(&["--timeout", "0.1"])?;
    ensure!((status, lines) == (Some(0), 1), "{status:?}, {lines} lines");
    let (status, _, errors) = trace(&["--count", "2", "--timeout", "0.1"])?;
    ensure!(
        status == Some(1) && errors.contains("0 of 2 requests"),
        "{errors}"
    );
    let (status, _, errors) = trace(&["--timeout", "0.1", "--", "sleep", "1000"])?;
    ensure!(
        status == Some(1) && errors.contains("was killed"),
        "{errors}"
    );
    Ok(())
}

#[guest_test]
fn tools_exit_quietly_on_a_closed_pipe() -> Result<()> {
    for arguments in [&["info"][..], &["list"], &["explain", "--length", "4M"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new("vdma")
            .args(arguments)
            .stdout(writer)
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && errors.is_empty(),
            "vdma {arguments:?}: {}: {errors}",
            output.status
        );
    }
    Ok(())
}
