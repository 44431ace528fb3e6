//! Serving front ends, one after the other.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::{
    backend::Backend,
    bar::Bar,
    listener::SocketListener,
    queue_runner::QueueParts,
    session::Session,
    vring::{collect_rings, lock},
    worker,
};
use crate::{
    fault::FaultSpec,
    log_limit::LogLimit,
    memory::DeviceMemory,
    metrics::DeviceMetrics,
    sandbox::{Role, SeccompMode, confine_thread},
};

/// What is fixed for the life of a device.
#[derive(Clone, Debug)]
pub struct DeviceSettings {
    /// Request queues, 1 to 16.
    pub num_queues: u16,
    /// Largest size of each: a power of two up to 1024.
    pub queue_size: u16,
    /// Threads that run the queues, 1 to `num_queues`.
    pub threads: u16,
    /// End after the first front end.
    pub once: bool,
    /// Offer `VIRTIO_F_ACCESS_PLATFORM`.
    pub access_platform: bool,
    /// How long to look at an idle ring before sleeping.
    pub poll: Duration,
    /// What happens to unexpected system calls of the device's threads.
    pub seccomp: SeccompMode,
    /// What goes wrong on purpose.
    pub faults: Vec<FaultSpec>,
}

/// A device, whoever is connected.
#[derive(Debug)]
pub struct Device {
    name: String,
    settings: DeviceSettings,
    memory: Arc<DeviceMemory>,
    metrics: DeviceMetrics,
    log_limit: LogLimit,
    /// Threads that wait for a front end to answer about the BAR, of front ends that have gone too.
    bar_threads: AtomicUsize,
}

impl Device {
    /// A device; `name` is for log lines.
    #[must_use]
    pub fn new(name: String, settings: DeviceSettings, memory: Arc<DeviceMemory>) -> Self {
        Self {
            name,
            metrics: DeviceMetrics::new(settings.num_queues),
            settings,
            memory,
            log_limit: LogLimit::default(),
            bar_threads: AtomicUsize::new(0),
        }
    }

    /// What it has done so far.
    #[must_use]
    pub fn metrics(&self) -> &DeviceMetrics {
        &self.metrics
    }

    pub(super) fn bar_threads(&self) -> &AtomicUsize {
        &self.bar_threads
    }

    /// Limits the lines that guests can cause.
    pub(super) fn log_limit(&self) -> &LogLimit {
        &self.log_limit
    }

    /// The name in log lines.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was chosen at the start.
    #[must_use]
    pub fn settings(&self) -> &DeviceSettings {
        &self.settings
    }

    /// The memory behind the BAR.
    #[must_use]
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }
}

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
    wake: OwnedFd,
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
    /// A thread or a descriptor cannot be made.
    pub fn start(
        device: Arc<Device>,
        listener: SocketListener,
        ended: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            device,
            listener,
            stopping: AtomicBool::new(false),
            wake: event_counter()?,
            connection: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let accepting = Listener::from(shared.listener.try_clone()?);
        let thread = thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || {
                let confined = confine_thread(Role::FrontEnd, serving.device.settings.seccomp);
                if let Err(e) = confined
                    .map_err(io::Error::other)
                    .and_then(|()| serving.serve(accepting))
                {
                    log::error!("{}: {e}; no more front ends", serving.device.name);
                }
                ended();
            })?;
        Ok(Self { shared, thread })
    }

    /// Disconnects the front end, if there is one, and accepts no other. Its file is gone at once.
    pub fn stop(&self) {
        self.shared.listener.remove_file();
        self.shared.stopping.store(true, Ordering::SeqCst);
        signal(&self.shared.wake);
        if let Some(connection) = lock(&self.shared.connection).as_ref() {
            connection.shutdown();
        }
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            log::error!("{}: the server thread panicked", self.shared.device.name);
        }
    }
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn serve(&self, mut listener: Listener) -> io::Result<()> {
        while self.await_connection()? {
            match self.connection(&mut listener) {
                Ok(()) if self.device.settings.once => break,
                Ok(()) => {}
                Err(e) => self.recover(&e),
            }
        }
        Ok(())
    }

    /// After a front end that could not be served: descriptors, threads or memory were short, which
    /// others may give back.
    fn recover(&self, error: &io::Error) {
        if self.device.log_limit.pass().is_some() {
            log::error!(
                "{}: cannot serve a front end: {error}; trying again (too many open files? raise the \
                 limit)",
                self.device.name
            );
        }
        let mut fds = [PollFd::new(&self.wake, PollFlags::IN)];
        // Whatever it returns, the caller looks whether the server is to stop.
        let _ = rustix::event::poll(&mut fds, Some(&RETRY));
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

    /// Serves one front end until it disconnects.
    fn connection(&self, listener: &mut Listener) -> io::Result<()> {
        let name = &self.device.name;
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let session = Session::new(Arc::clone(&self.device), memory.clone());
        let bar = Bar::new(Arc::clone(&session));
        let backend = Arc::new(Backend::new(Arc::clone(&session), Arc::clone(&bar)));
        let (daemon, rings) = collect_rings(|| {
            VhostUserDaemon::new("vhost-user".to_owned(), Arc::clone(&backend), memory)
        });
        let mut daemon = daemon.map_err(|e| io::Error::other(e.to_string()))?;
        session.set_rings(rings.clone());

        let threads = self.device.settings.threads.max(1);
        let mut workers = Vec::with_capacity(usize::from(threads));
        let mut failure: Option<io::Error> = None;
        for thread in 0..threads {
            let queues: Vec<QueueParts> = (0..)
                .zip(&rings)
                .filter(|(index, _)| index % threads == thread)
                .map(|(index, ring)| QueueParts {
                    index,
                    vring: ring.clone(),
                    session: Arc::clone(&session),
                })
                .collect();
            let name = match queues.len() {
                1 => format!("queue {thread}"),
                _ => format!("queues {thread} mod {threads}"),
            };
            match worker::spawn(name, queues) {
                Ok(worker) => workers.push(worker),
                Err(e) => failure = Some(e),
            }
        }
        if failure.is_none() {
            match daemon.start(listener) {
                Ok(()) => failure = self.attend(&mut daemon, &session).err(),
                Err(e) => failure = Some(io::Error::other(e.to_string())),
            }
        }

        bar.close();
        for ring in &rings {
            ring.stop();
        }
        for worker in workers {
            if worker.join().is_err() {
                log::error!("{name}: a queue's thread panicked");
            }
        }
        // A thread that still waits for the front end's answer must not keep guest memory mapped.
        session.end();
        failure.map_or(Ok(()), Err)
    }

    fn attend(
        &self,
        daemon: &mut VhostUserDaemon<Arc<Backend>>,
        session: &Session,
    ) -> io::Result<()> {
        let name = &self.device.name;
        log::info!("{name}: front end connected");
        self.device.metrics.front_ends.add(1);
        let connection = daemon.shutdown_handle();
        lock(&self.connection).clone_from(&connection);
        if self.is_stopping() {
            // `stop` may have come before it could see the connection.
            daemon.request_shutdown();
        }
        let over = event_counter()?;
        let result = thread::scope(|scope| {
            let watch = || self.watch_for_others(&over, session, connection.as_ref());
            if let Err(e) = thread::Builder::new()
                .name("watch".to_owned())
                .spawn_scoped(scope, watch)
            {
                log::warn!("{name}: cannot watch for other front ends: {e}");
            }
            let result = daemon.wait();
            signal(&over);
            result
        });
        lock(&self.connection).take();
        match result {
            Ok(()) | Err(DaemonError::HandleRequest(VhostUserError::Disconnected)) => {
                log::info!("{name}: front end disconnected");
            }
            Err(DaemonError::HandleRequest(e)) => {
                log::warn!("{name}: connection closed: {e}");
            }
            Err(e) => log::error!("{name}: connection failed: {e}"),
        }
        Ok(())
    }

    /// Until `over`, looks whether another front end comes. It waits in the listener's queue; but a
    /// connection that has not said a word gives way to it.
    fn watch_for_others(
        &self,
        over: &OwnedFd,
        session: &Session,
        connection: Option<&ShutdownHandle>,
    ) {
        let mut fds = [
            PollFd::new(over, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        loop {
            match rustix::event::poll(&mut fds, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    log::warn!("{}: cannot watch the socket: {e}", self.device.name);
                    return;
                }
            }
        }
        let is_over = |limit: Option<&Timespec>| {
            let mut fds = [PollFd::new(over, PollFlags::IN)];
            matches!(rustix::event::poll(&mut fds, limit), Ok(1))
        };
        if is_over(Some(&Timespec::default())) {
            return;
        }
        log::warn!(
            "{}: another front end waits until the connected one leaves",
            self.device.name
        );
        if !session.has_spoken() && !is_over(Some(&SILENCE)) && !session.has_spoken() {
            log::warn!("{}: connection closed: it never spoke", self.device.name);
            if let Some(connection) = connection {
                connection.shutdown();
            }
        }
    }
}

/// Pause after a front end that could not be served; it is still waiting in the listener's queue.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// How long a connection may be silent while another one waits.
const SILENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

fn event_counter() -> io::Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    Ok(rustix::event::eventfd(0, flags)?)
}

fn signal(counter: &OwnedFd) {
    // Fails only when the counter is full, and then it is readable all the same.
    let _ = rustix::io::write(counter, &1u64.to_ne_bytes());
}
