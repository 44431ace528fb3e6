//! Signals, delivered through a descriptor.

use std::{
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::{backend::SignalDelivery, exfiltrator::SignalOnly},
};
use vmm_sys_util::signal::{block_signal, unblock_signal};

const SIGNALS: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1];

/// A signal that is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// Exit; the signal's name.
    Exit(&'static str),
    /// Print a summary.
    Summary,
    /// The terminal was closed, which is ignored.
    HangUp,
}

/// The pending signals, with a descriptor that is readable when there are any.
pub(super) struct SignalPipe {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl SignalPipe {
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, SIGNALS)?;
        for signal in SIGNALS {
            block_signal(signal).map_err(|e| io::Error::other(format!("{e:?}")))?;
        }
        Ok(Self { delivery })
    }

    /// Unblocks the signals for this thread, which have been blocked since [`SignalPipe::new`].
    /// Threads that were started in between never handle any: their lists of system calls are too
    /// short.
    pub(super) fn unblock(&self) -> io::Result<()> {
        for signal in SIGNALS {
            unblock_signal(signal).map_err(|e| io::Error::other(format!("{e:?}")))?;
        }
        Ok(())
    }

    /// The signals since the last call.
    pub(super) fn take(&mut self) -> Vec<Signal> {
        let has_more = |read: &mut UnixStream| {
            let mut byte = [0u8; 1];
            match rustix::net::recv(read, &mut byte, rustix::net::RecvFlags::PEEK) {
                Ok((_, count)) => Ok(count > 0),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
                Err(e) => Err(e.into()),
            }
        };
        match self.delivery.poll_pending(&mut { has_more }) {
            Ok(Some(pending)) => pending.filter_map(signal).collect(),
            Ok(None) => Vec::new(),
            Err(e) => {
                log::error!("cannot read signals: {e}");
                Vec::new()
            }
        }
    }
}

fn signal(number: i32) -> Option<Signal> {
    match number {
        SIGTERM => Some(Signal::Exit("SIGTERM")),
        SIGINT => Some(Signal::Exit("SIGINT")),
        SIGHUP => Some(Signal::HangUp),
        SIGUSR1 => Some(Signal::Summary),
        _ => None,
    }
}

impl AsRawFd for SignalPipe {
    fn as_raw_fd(&self) -> RawFd {
        self.delivery.get_read().as_raw_fd()
    }
}
