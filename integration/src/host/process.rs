//! Child processes: each has its own process group, and none outlives this program.

use std::{
    fs::{self, File},
    io::{Seek as _, SeekFrom},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::host::{interrupt, process_groups};

/// How long a child may take to end after SIGTERM before it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// A running child. Dropping it terminates the child's whole process group.
pub(crate) struct Process {
    child: Child,
    group: Pid,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` in a new process group; the kernel kills it if this thread dies.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        interrupt::check()?;
        command.process_group(0);
        // SAFETY: the closure runs between fork and exec and makes one system call, which is
        // async-signal-safe; it touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
                    .map_err(Into::into)
            });
        }
        let mut started = None;
        let group = process_groups::add(|| {
            let child = command.spawn().with_context(|| {
                format!("cannot run {}", command.get_program().to_string_lossy())
            })?;
            let group = Pid::from_child(&child);
            started = Some(child);
            anyhow::Ok(group)
        })?;
        Ok(Self {
            child: started.context("no child was started")?,
            group,
            ended: None,
        })
    }

    /// Process id of the child.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child's piped standard output, once.
    pub(crate) fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the child to end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let status = self.child.wait().context("cannot wait for a child")?;
        self.note_end(status);
        Ok(status)
    }

    /// The child's status if it has ended.
    pub(crate) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait().context("cannot wait for a child")?
        {
            self.note_end(status);
        }
        Ok(self.ended)
    }

    /// Waits for at most `limit`.
    pub(crate) fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends `signal` to the child's process group.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended.is_none() {
            // A group that has just ended needs no signal.
            let _ = rustix::process::kill_process_group(self.group, signal);
        }
    }

    /// Terminates the child: SIGTERM, and SIGKILL for what remains of its group.
    pub(crate) fn end(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.signal(Signal::TERM);
        if !matches!(self.wait_for(GRACE), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.wait();
        }
    }

    fn note_end(&mut self, status: ExitStatus) {
        // Other processes of the group may remain, those of a shell pipeline for instance.
        let _ = rustix::process::kill_process_group(self.group, Signal::KILL);
        process_groups::remove(self.group);
        self.ended = Some(status);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `command` with its output in `log`; the error of a failure shows the end of the log.
pub(crate) fn run_logged(command: &mut Command, what: &str, log: &Path) -> Result<()> {
    let file = open_log(log)?;
    let start = fs::metadata(log).map_or(0, |metadata| metadata.len());
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("cannot duplicate a file")?)
        .stderr(file);
    let status = Process::spawn(command)?.wait()?;
    interrupt::check()?;
    if !status.success() {
        bail!(
            "{what} failed ({}); the log is {}:\n{}",
            describe(status),
            log.display(),
            tail(log, start, 30)
        );
    }
    Ok(())
}

/// Runs `command` and returns its standard output.
pub(crate) fn output(command: &mut Command, what: &str) -> Result<String> {
    let mut stdout = tempfile::tempfile().context("cannot create a temporary file")?;
    let mut stderr = tempfile::tempfile().context("cannot create a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().context("cannot duplicate a file")?)
        .stderr(stderr.try_clone().context("cannot duplicate a file")?);
    let status = Process::spawn(command)?.wait()?;
    interrupt::check()?;
    let read = |file: &mut File| -> Result<String> {
        file.seek(SeekFrom::Start(0)).context("cannot rewind")?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(file, &mut bytes).context("cannot read a command's output")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if !status.success() {
        bail!(
            "{what} failed ({}): {}",
            describe(status),
            read(&mut stderr)?.trim()
        );
    }
    read(&mut stdout)
}

/// Opens `log` for appending.
pub(crate) fn open_log(log: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open the log {}", log.display()))
}

/// The last `lines` lines of `log` from byte `start` on.
pub(crate) fn tail(log: &Path, start: u64, lines: usize) -> String {
    let Ok(bytes) = fs::read(log) else {
        return String::new();
    };
    let from = usize::try_from(start).unwrap_or(0).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[from..]);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// "exit status 3" or "killed by signal 9".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_process_ends_its_children_too() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let mut process = Process::spawn(Command::new("sh").args(["-c", &script])).unwrap();
        let pid = loop {
            match fs::read_to_string(&pid_file) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => std::thread::yield_now(),
            }
            assert_eq!(process.try_wait().unwrap(), None, "the shell has ended");
        };
        drop(process);
        // The signal is pending; the kernel delivers it when the child runs next.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") || state.contains(") X ") {
                break;
            }
            assert!(Instant::now() < deadline, "still there: {state}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_failing_command_shows_the_end_of_its_own_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "of another run\n").unwrap();
        let error = run_logged(
            Command::new("sh").args(["-c", "echo reason; exit 3"]),
            "the step",
            &log,
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.starts_with("the step failed (exit status 3)"),
            "{error}"
        );
        assert!(error.ends_with(":\nreason"), "{error}");
    }
}
