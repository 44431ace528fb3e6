//! Child processes that run a part of a test.

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

/// A child process; dropping this kills it and waits for it.
pub(crate) struct Child {
    pid: Pid,
    waited: bool,
}

impl Child {
    /// Forks; the child runs `run` and ends with status 0, or 1 and a message if it fails.
    ///
    /// The process must have a single thread: the child only has the calling one, and locks that
    /// others hold would stay locked in it.
    pub(crate) fn fork(run: impl FnOnce() -> Result<()>) -> Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")
            .context("/proc/self/task")?
            .count();
        ensure!(threads == 1, "fork with {threads} threads");
        // SAFETY: There is one thread, so no lock is held by another.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error()).context("fork"),
            0 => {
                let status = match run() {
                    Ok(()) => 0,
                    Err(error) => {
                        // The exit status reports the failure too.
                        let _ = writeln!(std::io::stderr(), "in the child: {error:#}");
                        1
                    }
                };
                // SAFETY: This ends the child without running the exit handlers of the parent.
                unsafe { libc::_exit(status) }
            }
            pid => Ok(Self {
                pid: Pid::from_raw(pid).context("fork returned no valid pid")?,
                waited: false,
            }),
        }
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.pid, signal).context("kill")
    }

    /// Waits until it has ended.
    pub(crate) fn wait(mut self) -> Result<WaitStatus> {
        let (_, status) = rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
            .context("waitpid")?
            .context("waitpid returned no status")?;
        self.waited = true;
        Ok(status)
    }

    /// Waits until it has ended, which has to be with success.
    pub(crate) fn succeed(self) -> Result<()> {
        let status = self.wait()?;
        ensure!(
            status.exit_status() == Some(0),
            "the child ended with {status:?}"
        );
        Ok(())
    }

    /// Waits until it has ended, which has to be by this signal.
    pub(crate) fn die_of(self, signal: Signal) -> Result<()> {
        let status = self.wait()?;
        ensure!(
            status.terminating_signal() == Some(signal.as_raw()),
            "the child ended with {status:?} instead of {signal:?}"
        );
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            // It may have ended already.
            let _ = rustix::process::kill_process(self.pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        }
    }
}
