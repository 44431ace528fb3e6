//! The thread that runs one queue, or several in turn.

use std::{
    io,
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
/// The thread cannot be made.
pub(super) fn spawn(name: String, queues: Vec<QueueParts>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(move || {
        if let Some(device) = queues.first().map(|queue| queue.session.device())
            && let Err(e) = confine_thread(Role::Queue, device.settings().seccomp)
        {
            log::error!("{}: {e}; queue stopped", device.name());
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
    /// Gives each queue a step in turn, and sleeps when none has anything to do.
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

    /// Sleeps until one of the `nexts`, or a wake-up, has come; takes wake-ups and kicks.
    fn sleep(&mut self, nexts: &[Next]) -> io::Result<()> {
        let asleep = Instant::now();
        let limit = nexts
            .iter()
            .filter_map(|next| match next {
                Next::AwaitTime(until) => Some(until.saturating_duration_since(asleep)),
                _ => None,
            })
            .min();
        let timeout = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let kicks = nexts.iter().map(|next| match next {
            Next::AwaitKick(kick) => kick.as_ref(),
            _ => None,
        });
        // Wake-ups of all queues, then the kicks that there are.
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(2 * nexts.len());
        fds.extend(
            self.queues
                .iter()
                .map(|queue| PollFd::from_borrowed_fd(queue.vring().wake_up(), PollFlags::IN)),
        );
        fds.extend(
            kicks
                .clone()
                .flatten()
                .map(|kick| PollFd::new(kick, PollFlags::IN)),
        );
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let (woken, mut kicked) = ready.split_at(nexts.len());
        for ((queue, kick), woken) in self.queues.iter_mut().zip(kicks).zip(woken) {
            if *woken {
                queue.vring().take_wake_up();
            }
            let Some(kick) = kick else { continue };
            if let Some((ready, rest)) = kicked.split_first() {
                kicked = rest;
                if *ready {
                    queue.kicked(kick, asleep.elapsed());
                }
            }
        }
        Ok(())
    }
}
