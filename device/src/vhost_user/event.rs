//! Event counters (eventfds), of this process and of the front end.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    fs::OFlags,
    io::ReadWriteFlags,
};

/// The offset by which preadv2(2) reads like read(2).
const CURRENT: u64 = u64::MAX;

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

/// Accepts a descriptor of the front end as its event counter.
///
/// A front end can pass any descriptor. Only an eventfd is accepted: of it a read is known never to
/// block (`RWF_NOWAIT`), and a write only while the counter is full and the front end has taken
/// `O_NONBLOCK` away again, which belongs to the description that both sides share. Whoever waits
/// for a thread that may be in such a write calls [`unblock_writer`] until it is not.
///
/// # Errors
///
/// The descriptor is not an eventfd, or cannot be told to be one.
pub(super) fn adopt(file: File) -> io::Result<Arc<File>> {
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if kind.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::other("it is not an eventfd"));
    }
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    Ok(Arc::new(file))
}

/// Adds one to a front end's event counter. A full counter is readable anyway.
pub(super) fn notify(counter: &File) {
    match rustix::io::write(counter, &1u64.to_ne_bytes()) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
        Err(e) => log::debug!("cannot notify the front end: {e}"),
    }
}

/// Reads a front end's event counter, and never blocks.
fn read(counter: &File) -> rustix::io::Result<usize> {
    let mut value = [0u8; 8];
    let mut buffers = [IoSliceMut::new(&mut value)];
    rustix::io::preadv2(counter, &mut buffers, CURRENT, ReadWriteFlags::NOWAIT)
}

/// Lowers a front end's event counter for a thread that is blocked writing to it.
pub(super) fn unblock_writer(counter: &File) {
    // Fails only when the counter is zero, and then nothing is blocked.
    let _ = read(counter);
}

/// Resets a front end's event counter that poll(2) has reported readable.
///
/// # Errors
///
/// Those of preadv2(2), except that the counter was zero.
pub(super) fn consume(counter: &File) -> io::Result<()> {
    match read(counter) {
        Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
