//! `cargo vm` as its users see it: exit statuses, messages, streams, and no remains.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal};

use super::{context::Context, registry::scenario};
use crate::{
    failure::{GUEST_FAILED, TIMED_OUT, USAGE},
    host::process::Process,
};

/// Limit on the time until processes disappear after their parent was killed.
const VANISH: Duration = Duration::from_secs(10);

scenario!(wrong_usage_is_status_2);
fn wrong_usage_is_status_2(context: &Context<'_>) -> Result<()> {
    for arguments in [
        &["--no-driver"][..],
        &["--memory", "lots", "--", "true"],
        &["--devices", "many", "--", "true"],
        &["--copy", "/no/such/file", "--", "true"],
        &["--no-such-option", "--", "true"],
    ] {
        let output = run(context.cargo_vm("exec").args(arguments))?;
        expect_status(&output, USAGE).with_context(|| arguments.join(" "))?;
    }
    // The last of several --kernel options applies.
    let output = run(Command::new(&context.program).args([
        "exec",
        "--no-driver",
        "--kernel",
        "1.0",
        "--",
        "true",
    ]))?;
    expect_status(&output, USAGE)?;
    expect_message(&output, "no kernel \"1.0\"")
}

scenario!(status_and_streams_are_those_of_the_command);
fn status_and_streams_are_those_of_the_command(context: &Context<'_>) -> Result<()> {
    let script = "echo to stdout; echo to stderr >&2; cat; exit 7";
    let mut child = context
        .cargo_vm("exec")
        .args(["--no-driver", "--", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo vm")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    // More than the buffers in between can hold.
    let input = vec![b'x'; 300_000];
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child
        .wait_with_output()
        .context("cannot wait for cargo vm")?;
    expect_status(&output, 7)?;
    match writer.join() {
        Ok(written) => written.context("the command did not take all input")?,
        Err(_) => bail!("the writing thread panicked"),
    }
    let expected = format!("to stdout\n{}", "x".repeat(300_000));
    ensure!(
        output.stdout == expected.as_bytes(),
        "standard output has {} bytes and not {}",
        output.stdout.len(),
        expected.len()
    );
    expect_message(&output, "to stderr\n")?;
    ensure!(
        !String::from_utf8_lossy(&output.stderr).contains("to stdout"),
        "standard output is also in standard error"
    );
    Ok(())
}

scenario!(copies_arrive_at_their_targets);
fn copies_arrive_at_their_targets(context: &Context<'_>) -> Result<()> {
    let host = tempfile::tempdir().context("cannot create a directory")?;
    let tree = host.path().join("tree");
    fs::create_dir(&tree).context("cannot create a directory")?;
    fs::write(tree.join("script"), "#!/bin/sh\necho from the script\n").context("cannot write")?;
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(tree.join("script"), executable).context("cannot set a mode")?;
    std::os::unix::fs::symlink("script", tree.join("link")).context("cannot make a link")?;
    // The target is below a link of the guest, which has to remain a link.
    let file = format!("{}/script:/lib/copied", tree.display());
    let output = run(context
        .cargo_vm("exec")
        .args(["--no-driver", "--copy", &tree.display().to_string()])
        .args(["--copy", &file, "--", "sh", "-c"])
        .arg(
            "/root/tree/link && readlink /root/tree/link && cat /usr/lib/copied && test -L /lib",
        ))?;
    expect_status(&output, 0)?;
    let expected = "from the script\nscript\n#!/bin/sh\necho from the script\n";
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text == expected, "the guest has {text:?}");
    Ok(())
}

scenario!(a_panic_is_shown_and_status_255);
fn a_panic_is_shown_and_status_255(context: &Context<'_>) -> Result<()> {
    let output = exec(
        context,
        &["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"],
    )?;
    expect_status(&output, GUEST_FAILED)?;
    expect_message(&output, "kernel panicked: sysrq triggered crash")?;
    expect_message(&output, "sysrq_handle_crash")?;
    expect_message(&output, "console.log")
}

scenario!(a_splat_fails_a_successful_run);
fn a_splat_fails_a_successful_run(context: &Context<'_>) -> Result<()> {
    let script = "echo '<4>WARNING: CPU: 0 PID: 1 at made/up.c:1' > /dev/kmsg";
    let output = exec(context, &["sh", "-c", script])?;
    expect_status(&output, GUEST_FAILED)?;
    expect_message(&output, "at made/up.c:1")
}

scenario!(a_timeout_is_status_124);
fn a_timeout_is_status_124(context: &Context<'_>) -> Result<()> {
    // The shell's child has to be killed as well.
    let script = "trap '' TERM; sleep 1000; echo not reached";
    let output = run(context.cargo_vm("exec").args([
        "--no-driver",
        "--timeout",
        "1",
        "--",
        "sh",
        "-c",
        script,
    ]))?;
    expect_status(&output, TIMED_OUT)?;
    expect_message(&output, "did not end within 1 s")?;
    ensure!(output.stdout.is_empty(), "the command continued");
    Ok(())
}

scenario!(a_guest_that_never_comes_up_is_detected);
fn a_guest_that_never_comes_up_is_detected(context: &Context<'_>) -> Result<()> {
    let output = run(context
        .cargo_vm("exec")
        .args(["--no-driver", "--qemu-arg=-S", "--", "true"])
        .env("VDMA_BOOT_SECONDS", "2"))?;
    expect_status(&output, GUEST_FAILED)?;
    expect_message(&output, "did not come up within 2 s")
}

scenario!(a_qemu_that_does_not_start_is_detected);
fn a_qemu_that_does_not_start_is_detected(context: &Context<'_>) -> Result<()> {
    let output = run(context.cargo_vm("exec").args([
        "--no-driver",
        "--qemu-arg=-no-such-option",
        "--",
        "true",
    ]))?;
    expect_status(&output, GUEST_FAILED)?;
    expect_message(&output, "QEMU ended")?;
    expect_message(&output, "-no-such-option: invalid option")
}

scenario!(a_backend_that_does_not_start_is_detected);
fn a_backend_that_does_not_start_is_detected(context: &Context<'_>) -> Result<()> {
    let output =
        run(context
            .cargo_vm("exec")
            .args(["--device-arg=--no-such-option", "--", "true"]))?;
    expect_status(&output, GUEST_FAILED)?;
    expect_message(&output, "the backend of device 0 ended (exit status 2)")?;
    expect_message(&output, "--no-such-option")
}

scenario!(a_lost_agent_is_detected);
fn a_lost_agent_is_detected(context: &Context<'_>) -> Result<()> {
    // This kills every process except the first.
    let output = exec(context, &["bash", "-c", "kill -KILL -1"])?;
    expect_status(&output, GUEST_FAILED)?;
    expect_message(&output, "the agent ended")
}

scenario!(an_interrupt_leaves_no_process);
fn an_interrupt_leaves_no_process(context: &Context<'_>) -> Result<()> {
    let scratch = tempfile::tempdir().context("cannot create a directory")?;
    let (mut process, pid) = start_sleeper(context, scratch.path())?;
    rustix::process::kill_process(pid, Signal::INT).context("cannot send SIGINT")?;
    let status = process.wait()?;
    ensure!(status.code() == Some(130), "exit status {status}");
    let left = processes_naming(scratch.path());
    ensure!(left.is_empty(), "still running: {}", left.join("; "));
    let files: Vec<_> = fs::read_dir(scratch.path())
        .context("cannot list a directory")?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(files.is_empty(), "left behind: {files:?}");
    Ok(())
}

scenario!(a_kill_leaves_no_process);
fn a_kill_leaves_no_process(context: &Context<'_>) -> Result<()> {
    let scratch = tempfile::tempdir().context("cannot create a directory")?;
    let (mut process, pid) = start_sleeper(context, scratch.path())?;
    rustix::process::kill_process(pid, Signal::KILL).context("cannot send SIGKILL")?;
    process.wait()?;
    let deadline = Instant::now() + VANISH;
    loop {
        let left = processes_naming(scratch.path());
        if left.is_empty() {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "still running: {}",
            left.join("; ")
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a run with a device that does not end by itself, with its files in `scratch`.
fn start_sleeper(context: &Context<'_>, scratch: &Path) -> Result<(Process, Pid)> {
    let mut process = Process::spawn(
        context
            .cargo_vm("exec")
            .args(["--", "sh", "-c", "echo ready; sleep 1000"])
            .env("TMPDIR", scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    )?;
    let stdout = process.take_stdout().context("no standard output")?;
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("cannot read from cargo vm")?;
    ensure!(
        line == "ready\n",
        "the guest did not come up; its output is {line:?}"
    );
    ensure!(
        processes_naming(scratch).len() >= 2,
        "QEMU and the backend cannot be found"
    );
    let pid = i32::try_from(process.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process without a number")?;
    Ok((process, pid))
}

/// Returns the command lines of processes that contain `path`.
fn processes_naming(path: &Path) -> Vec<String> {
    let path = path.display().to_string();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&path))
        .collect()
}

fn exec(context: &Context<'_>, command: &[&str]) -> Result<Output> {
    run(context
        .cargo_vm("exec")
        .args(["--no-driver", "--"])
        .args(command))
}

pub(super) fn run(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .context("cannot start cargo vm")
}

pub(super) fn expect_status(output: &Output, status: u8) -> Result<()> {
    ensure!(
        output.status.code() == Some(status.into()),
        "{} instead of {status}; its messages:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

pub(super) fn expect_message(output: &Output, expected: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains(expected), "no {expected:?} in:\n{text}");
    Ok(())
}
