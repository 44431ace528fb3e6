//! Calls from a program in the guest to the harness.

use std::os::unix::net::UnixStream;

use crate::{FrameError, HostCall, HostReply, read_frame, write_frame};

/// Socket on which the agent accepts calls.
pub const HOST_SOCKET: &str = "/run/vdma-host.sock";

/// Error of a call.
#[derive(Debug, thiserror::Error)]
pub enum HostCallError {
    /// The agent cannot be reached.
    #[error("no harness at {HOST_SOCKET} ({0}); this works only in a guest of `cargo vm`")]
    NoHarness(std::io::Error),
    /// The connection failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The harness has ended.
    #[error("the harness ended before it replied")]
    NoReply,
    /// The harness refused.
    #[error("the harness refused: {0}")]
    Refused(String),
}

/// Calls the harness and returns its reply.
///
/// # Errors
///
/// When there is no harness or it refuses.
pub fn call_host(call: &HostCall) -> Result<Vec<u8>, HostCallError> {
    let mut stream = UnixStream::connect(HOST_SOCKET).map_err(HostCallError::NoHarness)?;
    write_frame(&mut stream, call)?;
    match read_frame(&mut stream)? {
        Some(HostReply::Done(data)) => Ok(data),
        Some(HostReply::Refused(reason)) => Err(HostCallError::Refused(reason)),
        None => Err(HostCallError::NoReply),
    }
}
