//! What can be chosen about the sandbox.

use std::{path::PathBuf, str::FromStr};

use super::error::SeccompModeError;

/// What happens on a system call that the filter does not allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SeccompMode {
    /// Nothing: there is no filter.
    None,
    /// It is executed and the kernel logs it (`dmesg`, audit), to develop the lists.
    Log,
    /// The backend is killed (SIGSYS).
    #[default]
    Kill,
}

impl FromStr for SeccompMode {
    type Err = SeccompModeError;

    fn from_str(text: &str) -> Result<Self, SeccompModeError> {
        match text {
            "none" => Ok(Self::None),
            "log" => Ok(Self::Log),
            "kill" => Ok(Self::Kill),
            _ => Err(SeccompModeError(text.to_owned())),
        }
    }
}

/// A kind of thread, with its own list of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The whole process: what any thread needs.
    Process,
    /// The main thread, once all others have started.
    Control,
    /// Threads that talk to front ends.
    FrontEnd,
    /// A thread that runs queues.
    Queue,
    /// The thread that writes the log.
    Log,
}

/// How the sandbox is to be set up.
#[derive(Clone, Debug, Default)]
pub struct SandboxSettings {
    /// The mode of the system-call filters.
    pub seccomp: SeccompMode,
    /// Do not restrict access to the file system.
    pub no_landlock: bool,
    /// Directories in which sockets are removed at exit.
    pub socket_directories: Vec<PathBuf>,
}
