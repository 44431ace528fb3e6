//! One front end, from the beginning of its connection to the end.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{
    Error as DaemonError, ShutdownHandle, VhostUserDaemon, VhostUserHandlerError,
};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::{
    backend::Backend,
    bar::Bar,
    device::Device,
    event::Event,
    queue_runner::QueueParts,
    session::Session,
    takeover,
    vring::{Vring, collect_rings},
    worker,
};

/// The objects and threads that serve one front end. Dropping it stops the threads and releases the
/// front end's memory.
pub(super) struct Connection {
    session: Arc<Session>,
    bar: Arc<Bar>,
    daemon: VhostUserDaemon<Arc<Backend>>,
    rings: Vec<Vring>,
    workers: Vec<JoinHandle<()>>,
}

impl Connection {
    /// Prepares to serve the next front end of `device`, and starts the threads for its queues.
    ///
    /// # Errors
    ///
    /// A descriptor or a thread cannot be created.
    pub(super) fn new(device: &Arc<Device>) -> io::Result<Self> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let session = Session::new(Arc::clone(device), memory.clone());
        let bar = Bar::new(Arc::clone(&session));
        let backend = Arc::new(Backend::new(Arc::clone(&session), Arc::clone(&bar)));
        let (daemon, rings) =
            collect_rings(|| VhostUserDaemon::new("vhost-user".to_owned(), backend, memory));
        let daemon = daemon.map_err(|e| io::Error::other(e.to_string()))?;
        session.set_rings(rings.clone());
        let mut connection = Self {
            session,
            bar,
            daemon,
            rings,
            workers: Vec::new(),
        };
        connection.spawn_workers()?;
        Ok(connection)
    }

    /// Starts the threads of the queues. Neighbouring queues go to different threads.
    fn spawn_workers(&mut self) -> io::Result<()> {
        let threads = self.session.device().settings().threads.max(1);
        for thread in 0..threads {
            let queues: Vec<QueueParts> = (0..)
                .zip(&self.rings)
                .filter(|(index, _)| index % threads == thread)
                .map(|(index, ring)| QueueParts {
                    index,
                    vring: ring.clone(),
                    session: Arc::clone(&self.session),
                })
                .collect();
            let name = match queues.len() {
                1 => format!("queue {thread}"),
                _ => format!("queues {thread} mod {threads}"),
            };
            self.workers.push(worker::spawn(name, queues)?);
        }
        Ok(())
    }

    /// Accepts a front end from `listener`.
    ///
    /// # Errors
    ///
    /// The connection cannot be accepted, or its thread cannot be started.
    pub(super) fn accept(&mut self, listener: &mut Listener) -> io::Result<()> {
        self.daemon
            .start(listener)
            .map_err(|e| io::Error::other(e.to_string()))?;
        log::debug!("{}: connection accepted", self.session.device().name());
        Ok(())
    }

    /// Whether the handshake of a front end was started on the connection.
    pub(super) fn was_front_end(&self) -> bool {
        self.session.has_handshake_started()
    }

    /// The means of closing the connection from another thread.
    pub(super) fn shutdown_handle(&self) -> Option<ShutdownHandle> {
        self.daemon.shutdown_handle()
    }

    /// Waits until the front end disconnects. Meanwhile other front ends may appear on `socket`.
    ///
    /// # Errors
    ///
    /// A descriptor cannot be created.
    pub(super) fn serve(&mut self, socket: &(impl AsFd + Sync)) -> io::Result<()> {
        let Self {
            session, daemon, ..
        } = self;
        let name = session.device().name();
        let connection = daemon.shutdown_handle();
        let over = Event::new()?;
        let result = thread::scope(|scope| {
            let watch = || takeover::watch(socket, &over, session, connection.as_ref());
            if let Err(e) = thread::Builder::new()
                .name("watch".to_owned())
                .spawn_scoped(scope, watch)
            {
                log::warn!("{name}: cannot watch for other front ends: {e}");
            }
            let result = daemon.wait();
            over.signal();
            result
        });
        match result {
            Ok(()) | Err(DaemonError::HandleRequest(VhostUserError::Disconnected)) => {
                log::info!("{name}: front end disconnected");
            }
            Err(DaemonError::HandleRequest(e)) => {
                if is_missing_memory(&e) {
                    session.report_unshared();
                }
                log::warn!("{name}: connection closed: {e}");
            }
            Err(e) => log::error!("{name}: connection failed: {e}"),
        }
        Ok(())
    }
}

/// Whether a ring was to be placed in memory that is not in the table.
fn is_missing_memory(error: &VhostUserError) -> bool {
    let VhostUserError::ReqHandlerError(error) = error else {
        return false;
    };
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(VhostUserHandlerError::MissingMemoryMapping))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.bar.close();
        for ring in &self.rings {
            ring.stop();
        }
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                let name = self.session.device().name();
                log::error!("{name}: a queue's thread panicked");
            }
        }
        // A thread that still waits for the front end's reply must not keep guest memory mapped.
        self.session.end();
    }
}
