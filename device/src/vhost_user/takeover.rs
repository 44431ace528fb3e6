//! Dropping an idle connection in favour of the next one.
//!
//! A device serves one front end at a time. Another one waits in the listener's queue, but not for
//! a connection on which the handshake has not even started.

use std::{io, os::fd::AsFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use vhost_user_backend::ShutdownHandle;

use super::{event::Event, session::Session};

/// How long a connection may be idle while another one waits.
const IDLE_LIMIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Watches `listener` for another front end until `over`; closes the `connection` of `session` if
/// it is idle then.
pub(super) fn watch(
    listener: &impl AsFd,
    over: &Event,
    session: &Session,
    connection: Option<&ShutdownHandle>,
) {
    let name = session.device().name();
    if let Err(e) = await_any(listener, over) {
        log::warn!("{name}: cannot watch the socket: {e}");
        return;
    }
    if over.wait(&Timespec::default()) {
        return;
    }
    log::warn!("{name}: another front end waits until the connected one disconnects");
    let is_idle = || !session.has_handshake_started();
    if is_idle() && !over.wait(&IDLE_LIMIT) && is_idle() {
        log::warn!("{name}: closing an idle connection: no handshake was started");
        if let Some(connection) = connection {
            connection.shutdown();
        }
    }
}

/// Waits until a connection is pending on `listener` or `over` is signalled.
fn await_any(listener: &impl AsFd, over: &Event) -> io::Result<()> {
    let mut fds = [
        PollFd::new(over, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
    ];
    loop {
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
