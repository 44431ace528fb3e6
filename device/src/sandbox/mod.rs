//! What the daemon takes away from itself before any front end can speak to it.
//!
//! In this order: capabilities and the way to new privileges, then the file system (landlock), then
//! system calls (seccomp), first for the whole process and once more, narrower, for each kind of
//! thread. A guest that took over a queue's thread could read and write what that thread has mapped,
//! wait, and notify; it could not open, connect, execute or trace anything.

mod filesystem;
mod syscalls;

use std::{path::PathBuf, str::FromStr};

use rustix::thread::CapabilitySet;
use thiserror::Error;

pub use self::filesystem::restrict_file_system;

/// What happens to a system call that is not on the list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SeccompMode {
    /// Nothing: there is no filter.
    None,
    /// It is carried out and the kernel logs it (`dmesg`, audit), to develop the lists.
    Log,
    /// The daemon is killed (SIGSYS).
    #[default]
    Kill,
}

impl FromStr for SeccompMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "log" => Ok(Self::Log),
            "kill" => Ok(Self::Kill),
            _ => Err(format!("'{text}' is none of none, log, kill")),
        }
    }
}

/// A kind of thread, with a list of system calls of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The whole process: what any thread needs.
    Process,
    /// The main thread, once all others run.
    Control,
    /// Threads that talk to front ends.
    FrontEnd,
    /// A queue's thread.
    Queue,
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Capabilities or the way to new privileges cannot be given up.
    #[error("cannot drop privileges: {0}")]
    Privileges(rustix::io::Errno),
    /// The filter for system calls cannot be installed.
    #[error("cannot filter system calls: {0}; --seccomp none goes without")]
    Seccomp(String),
    /// Access to the file system cannot be restricted.
    #[error("cannot restrict access to files: {0}; --no-landlock goes without")]
    Landlock(String),
}

/// What is wanted of the sandbox.
#[derive(Clone, Debug, Default)]
pub struct SandboxSettings {
    /// For system calls.
    pub seccomp: SeccompMode,
    /// Whether to leave access to the file system as it is.
    pub no_landlock: bool,
    /// Directories in which the daemon removes its sockets in the end.
    pub socket_directories: Vec<PathBuf>,
}

/// Confines this thread and all that it starts from now on; to be called while it is the only one.
///
/// # Errors
///
/// See [`SandboxError`]. A kernel without landlock is no error, but a line in the log.
pub fn confine_process(settings: &SandboxSettings) -> Result<(), SandboxError> {
    drop_privileges().map_err(SandboxError::Privileges)?;
    limit_arenas();
    if !settings.no_landlock {
        restrict_file_system(&settings.socket_directories)?;
    }
    confine_thread(Role::Process, settings.seccomp)
}

/// Confines this thread to the system calls of its role.
///
/// # Errors
///
/// [`SandboxError::Seccomp`].
pub fn confine_thread(role: Role, mode: SeccompMode) -> Result<(), SandboxError> {
    syscalls::install(role, mode).map_err(SandboxError::Seccomp)
}

/// Gives up all capabilities, also those of programs that could be executed.
fn drop_privileges() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = rustix::thread::CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)
}

/// Keeps the C library's allocator to its one main arena. With more it opens files now and then: to
/// count the processors, and to look up how memory is committed before it gives some back. Nothing
/// on a request's way allocates, so that threads hardly meet there.
fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call only sets a number inside of the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}
