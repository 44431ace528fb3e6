//! Why the sandbox cannot be set up.

use std::path::PathBuf;

use thiserror::Error;

/// An error while confining the process or a thread.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Capabilities or the means of gaining privileges cannot be dropped.
    #[error("cannot drop privileges: {0}")]
    Privileges(#[source] rustix::io::Errno),
    /// The system-call filter cannot be installed.
    #[error("cannot filter system calls: {0}; use --seccomp none to run without")]
    Seccomp(#[source] seccompiler::Error),
    /// Access to the file system cannot be restricted.
    #[error("cannot restrict access to files: {0}; use --no-landlock to run without")]
    Landlock(#[source] landlock::RulesetError),
    /// The directory of a socket cannot be opened.
    #[error("cannot allow access to {}: {source}; use --no-landlock to run without", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why it cannot be opened.
        source: landlock::PathFdError,
    },
}

/// A text that is not the name of a [`SeccompMode`].
///
/// [`SeccompMode`]: super::SeccompMode
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not one of none, log, kill")]
pub struct SeccompModeError(pub String);
