//! Serving front ends, one after the other.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use vhost::vhost_user::Listener;
use vhost_user_backend::ShutdownHandle;

use super::{connection::Connection, device::Device, event::Event, listener::SocketListener};
use crate::{
    lock::lock,
    sandbox::{Role, confine_thread},
};

/// Pause after a front end that could not be served; it still waits in the listener's queue.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// The thread that serves one device's front ends.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

struct Shared {
    device: Arc<Device>,
    listener: SocketListener,
    stopping: AtomicBool,
    /// Wakes the thread to stop.
    wake: Event,
    /// The connection being served.
    connection: Mutex<Option<ShutdownHandle>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts serving `device` on `listener`; calls `ended` when it stops by itself (`once`, or an
    /// error that has been logged).
    ///
    /// # Errors
    ///
    /// A thread or a descriptor cannot be created.
    pub fn start(
        device: Arc<Device>,
        listener: SocketListener,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            device,
            listener,
            stopping: AtomicBool::new(false),
            wake: Event::new()?,
            connection: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let accepting = Listener::from(shared.listener.try_clone()?);
        let thread = thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || {
                let confined = confine_thread(Role::FrontEnd, serving.device.settings().seccomp);
                if let Err(e) = confined
                    .map_err(io::Error::other)
                    .and_then(|()| serving.run(accepting))
                {
                    let name = serving.device.name();
                    log::error!("{name}: {e}; no more front ends are accepted");
                }
                ended();
            })?;
        Ok(Self { shared, thread })
    }

    /// Disconnects the front end, if there is one, and accepts no other. The socket's file is
    /// removed at once.
    pub fn stop(&self) {
        self.shared.listener.remove_file();
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake.signal();
        if let Some(connection) = lock(&self.shared.connection).as_ref() {
            connection.shutdown();
        }
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            let name = self.shared.device.name();
            log::error!("{name}: the server thread panicked");
        }
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Serves one front end after the other until the server is stopped.
    fn run(&self, mut listener: Listener) -> io::Result<()> {
        while self.await_connection()? {
            match self.serve_next(&mut listener) {
                Ok(true) if self.device.settings().once => break,
                Ok(_) => {}
                Err(e) => self.pause_after(&e),
            }
        }
        Ok(())
    }

    /// Waits for a front end; `false` when the server is to stop.
    fn await_connection(&self) -> io::Result<bool> {
        while !self.is_stopping() {
            let mut fds = [
                PollFd::new(&self.wake, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            if !fds[1].revents().is_empty() && !self.is_stopping() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Serves one front end until it disconnects; whether it was one: a connection on which no
    /// handshake has started is a probe.
    fn serve_next(&self, listener: &mut Listener) -> io::Result<bool> {
        let mut connection = Connection::new(&self.device)?;
        connection.accept(listener)?;
        let handle = connection.shutdown_handle();
        lock(&self.connection).clone_from(&handle);
        if self.is_stopping()
            && let Some(handle) = handle
        {
            // `stop` may have come before it could see the connection.
            handle.shutdown();
        }
        let served = connection.serve(&self.listener);
        lock(&self.connection).take();
        let was_front_end = connection.was_front_end();
        // Ends the threads that use device memory.
        drop(connection);
        let memory = self.device.memory();
        if self.device.settings().scrub && was_front_end {
            memory.discard(0, memory.size()).inspect_err(|_| {
                // The next front end must not read what could not be zeroed.
                self.stopping.store(true, Ordering::SeqCst);
            })?;
        }
        served.map(|()| was_front_end)
    }

    /// Pauses after a front end that could not be served: descriptors, threads or memory were
    /// short, and may be freed elsewhere.
    fn pause_after(&self, error: &io::Error) {
        if self.device.log_limit().pass().is_some() {
            log::error!(
                "{}: cannot serve a front end: {error}; trying again (too many open files? raise the \
                 limit)",
                self.device.name()
            );
        }
        // Whatever this returns, the caller checks whether the server is to stop.
        self.wake.wait(&RETRY);
    }
}
