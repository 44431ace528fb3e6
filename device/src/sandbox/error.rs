//! Why the sandbox cannot be set up.

use thiserror::Error;

/// An error while confining the process or a thread.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Capabilities or the means of gaining privileges cannot be dropped.
    #[error("cannot drop privileges: {0}")]
    Privileges(rustix::io::Errno),
    /// The system-call filter cannot be installed.
    #[error("cannot filter system calls: {0}; use --seccomp none to run without")]
    Seccomp(String),
    /// Access to the file system cannot be restricted.
    #[error("cannot restrict access to files: {0}; use --no-landlock to run without")]
    Landlock(String),
}
