//! How a run can fail, and the exit status that each way has.

use std::{
    fmt::{self, Display, Formatter},
    path::PathBuf,
};

use crate::host::interrupt::Interrupted;

/// Exit status when the guest died or its kernel complained.
pub(crate) const GUEST_FAILED: u8 = 255;

/// Exit status of a timeout.
pub(crate) const TIMED_OUT: u8 = 124;

/// Exit status of wrong usage.
pub(crate) const USAGE: u8 = 2;

/// Why a guest ended prematurely.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GuestFailure {
    /// Its kernel panicked.
    #[error("the guest's kernel panicked: {0}")]
    Panic(String),
    /// QEMU ended.
    #[error("QEMU ended while the guest was running ({status}){detail}")]
    QemuEnded {
        /// How it ended.
        status: String,
        /// The end of its output, on lines of its own.
        detail: String,
    },
    /// QEMU stopped the guest without being asked to.
    #[error("QEMU stopped the guest{detail}")]
    Stopped {
        /// The end of its output, on lines of its own.
        detail: String,
    },
    /// A backend ended.
    #[error("the backend of device {device} ended ({status}){detail}")]
    BackendEnded {
        /// Which device.
        device: u32,
        /// How it ended.
        status: String,
        /// The end of its output, on lines of its own.
        detail: String,
    },
    /// The guest did not come up in time.
    #[error(
        "the guest did not come up within {0} s; `-v` shows its console, and on a slow machine \
         VDMA_BOOT_SECONDS extends the limit"
    )]
    BootTimeout(u64),
    /// The guest reported that it cannot continue.
    #[error("the guest could not be brought up: {0}")]
    Fatal(String),
    /// The agent's connection broke.
    #[error("the connection to the guest's agent broke: {0}")]
    AgentLost(String),
    /// The guest no longer responds.
    #[error("the guest no longer responds: {0}")]
    Silent(String),
}

/// A guest that died, with the last lines of its console.
#[derive(Debug)]
pub(crate) struct GuestDeath {
    pub(crate) failure: GuestFailure,
    pub(crate) last_lines: Vec<String>,
    pub(crate) log: PathBuf,
}

impl std::error::Error for GuestDeath {}

impl Display for GuestDeath {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.failure)?;
        if !self.last_lines.is_empty() {
            write!(f, "\n  the console's last lines:")?;
        }
        for line in &self.last_lines {
            write!(f, "\n    {line}")?;
        }
        write!(f, "\n  the full log: {}", self.log.display())
    }
}

/// A failure with an exit status of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunFailure {
    /// The guest died.
    #[error(transparent)]
    Guest(#[from] GuestDeath),
    /// The guest's kernel complained about itself.
    #[error("the guest's kernel complained {count} time(s):{text}\n  the full log: {}", log.display())]
    Splat {
        /// Number of complaints.
        count: usize,
        /// The complaints, on lines of their own.
        text: String,
        /// The console's log.
        log: PathBuf,
    },
    /// The command took too long.
    #[error("the command did not end within {0} s (--timeout) and was killed")]
    TimedOut(u64),
    /// The arguments are invalid.
    #[error("{0}")]
    Usage(String),
}

/// Returns the exit status for `error`.
pub(crate) fn exit_status(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(Interrupted(signal)) = cause.downcast_ref() {
            return u8::try_from(128 + signal).unwrap_or(1);
        }
        match cause.downcast_ref() {
            Some(RunFailure::Guest(_) | RunFailure::Splat { .. }) => return GUEST_FAILED,
            Some(RunFailure::TimedOut(_)) => return TIMED_OUT,
            Some(RunFailure::Usage(_)) => return USAGE,
            None => {}
        }
        if cause.downcast_ref::<GuestFailure>().is_some() {
            return GUEST_FAILED;
        }
    }
    1
}
