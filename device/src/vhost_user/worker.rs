//! The thread that runs one queue, or several in turn.

use std::{
    io,
    os::fd::AsFd,
    thread::{self, JoinHandle},
    time::Instant,
};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::queue_runner::{Next, QueueParts, QueueRunner};
use crate::sandbox::{Role, confine_thread};

/// Starts a thread for queues of one front end, at least one; it ends after [`Vring::stop`].
///
/// [`Vring::stop`]: super::vring::Vring::stop
///
/// # Errors
///
/// The thread cannot be started.
pub(super) fn spawn(name: String, queues: Vec<QueueParts>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(move || {
        if let Some(device) = queues.first().map(|queue| queue.session.device())
            && let Err(e) = confine_thread(Role::Queue, device.settings().seccomp)
        {
            log::error!("{}: {e}; its queues do not run", device.name());
            return;
        }
        let alone = queues.len() == 1;
        let queues = queues
            .into_iter()
            .map(|parts| QueueRunner::new(parts, alone))
            .collect();
        Worker { queues }.run();
    })
}

struct Worker {
    queues: Vec<QueueRunner>,
}

impl Worker {
    /// Makes a step of each queue in turn, and sleeps when none has anything to do.
    fn run(&mut self) {
        let mut nexts = Vec::with_capacity(self.queues.len());
        while !self.queues.iter().any(|queue| queue.vring().is_stopping()) {
            nexts.clear();
            nexts.extend(self.queues.iter_mut().map(QueueRunner::step));
            if nexts.iter().any(|next| matches!(next, Next::Step)) {
                continue;
            }
            if let Err(e) = self.sleep(&nexts) {
                for queue in &self.queues {
                    log::error!(
                        "{}: cannot wait for kicks: {e}; queue stopped",
                        queue.name()
                    );
                }
                return;
            }
        }
    }

    /// Sleeps until one of the `nexts`, or a wake-up, occurs; consumes wake-ups and kicks.
    fn sleep(&mut self, nexts: &[Next]) -> io::Result<()> {
        let begin = Instant::now();
        let ready = self.poll(nexts, begin)?;
        let (woken, mut kicked) = ready.split_at(nexts.len());
        for ((queue, next), woken) in self.queues.iter_mut().zip(nexts).zip(woken) {
            if *woken {
                queue.vring().consume_wake_up();
            }
            let Some(kick) = next.kick() else { continue };
            if let Some((ready, rest)) = kicked.split_first() {
                kicked = rest;
                if *ready {
                    queue.kicked(kick, begin.elapsed());
                }
            }
        }
        Ok(())
    }

    /// Waits in poll(2); returns which descriptors are ready: the wake-ups of all queues, then the
    /// kicks of those that await one.
    fn poll(&self, nexts: &[Next], now: Instant) -> io::Result<Vec<bool>> {
        let timeout = nexts
            .iter()
            .filter_map(|next| next.until())
            .map(|until| until.saturating_duration_since(now))
            .min()
            .and_then(|timeout| Timespec::try_from(timeout).ok());
        let wake_ups = self.queues.iter().map(|queue| queue.vring().wake_up());
        let kicks = nexts.iter().filter_map(Next::kick).map(|kick| kick.as_fd());
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(2 * nexts.len());
        fds.extend(
            wake_ups
                .chain(kicks)
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(fds.iter().map(|fd| !fd.revents().is_empty()).collect())
    }
}
