//! Event counters (eventfds), of this process and of the front end.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    fs::OFlags,
};

/// An event counter of this process, by which one thread wakes another.
#[derive(Debug)]
pub(super) struct Event(OwnedFd);

impl Event {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// Makes the counter readable.
    pub(super) fn signal(&self) {
        // Fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Resets the counter.
    pub(super) fn clear(&self) {
        // Fails only when the counter is zero already.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }

    /// Waits up to `limit` for a signal, which is not cleared; whether there was one.
    pub(super) fn wait(&self, limit: &Timespec) -> bool {
        is_ready(self, PollFlags::IN, limit)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_ready(fd: &impl AsFd, flags: PollFlags, limit: &Timespec) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    matches!(rustix::event::poll(&mut fds, Some(limit)), Ok(1))
}

/// Adds one to a front end's event counter, unless that would block: a full counter is readable
/// anyway.
pub(super) fn notify(counter: &File) {
    let blocks =
        !rustix::fs::fcntl_getfl(counter).is_ok_and(|flags| flags.contains(OFlags::NONBLOCK));
    if blocks && !is_ready(counter, PollFlags::OUT, &Timespec::default()) {
        return;
    }
    if let Err(e) = rustix::io::write(counter, &1u64.to_ne_bytes()) {
        log::debug!("cannot notify the front end: {e}");
    }
}

/// Resets a front end's event counter, if it is readable, for a thread that is blocked writing to
/// it.
pub(super) fn unblock_writer(counter: &File) {
    if is_ready(counter, PollFlags::IN, &Timespec::default()) {
        // The counter's owner may have been faster, which unblocks the writer just as well.
        let _ = rustix::io::read(counter, &mut [0u8; 8]);
    }
}

/// Resets a front end's event counter that poll(2) has reported readable.
///
/// # Errors
///
/// The descriptor is not an event counter, or those of read(2).
pub(super) fn consume(counter: &File) -> io::Result<()> {
    let mut value = [0u8; 8];
    match rustix::io::read(counter, &mut value) {
        Ok(8) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
        Ok(count) => Err(io::Error::other(format!(
            "a read returns {count} bytes where an eventfd returns 8"
        ))),
        Err(e) => Err(e.into()),
    }
}

/// Sets `O_NONBLOCK`, so that reading a counter which the front end has reset meanwhile does not
/// block.
pub(super) fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?;
    Ok(())
}
