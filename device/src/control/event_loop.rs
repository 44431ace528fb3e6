//! The event loop of the main thread.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use thiserror::Error;

use super::{
    metrics_socket::MetricsSocket,
    signals::{Signal, SignalPipe},
};
use crate::{
    log_output,
    metrics::summary_lines,
    sandbox::{Role, SandboxError, SeccompMode, confine_thread},
    vhost_user::{Device, Server, SocketListener},
};

/// How long requests in progress may take to finish after a signal. The process is specified to
/// exit within 200 ms.
const GRACE: Duration = Duration::from_millis(50);

/// Why the control loop failed, or did not start.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Events cannot be waited for.
    #[error("cannot run the control loop: {0}")]
    Events(#[from] event_manager::Error),
    /// The main thread cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Signals, threads or descriptors cannot be set up.
    #[error("cannot set up {what}: {source}")]
    Io {
        /// What was to be set up.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// The signal handlers. They are installed before any socket appears: a process that sees one may
/// send a signal and rely on a clean exit.
pub struct Signals(SignalPipe);

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    ///
    /// The handlers or their pipe cannot be created.
    pub fn install() -> Result<Self, ControlError> {
        let what = "signal handling";
        SignalPipe::new()
            .map(Self)
            .map_err(|source| ControlError::Io { what, source })
    }
}

/// Serves all devices until SIGTERM or SIGINT arrives, or until no server is left. Then flushes the
/// memory of each.
///
/// # Errors
///
/// See [`ControlError`].
pub fn run(
    signals: Signals,
    devices: Vec<(Arc<Device>, SocketListener)>,
    metrics: Option<SocketListener>,
    seccomp: SeccompMode,
) -> Result<(), ControlError> {
    let io = |what| move |source| ControlError::Io { what, source };
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let ended = rustix::event::eventfd(0, flags).map_err(|e| io("the control loop")(e.into()))?;
    let servers = start_servers(devices, &ended).map_err(io("a server"))?;
    let devices: Vec<_> = servers
        .iter()
        .map(|(device, _)| Arc::clone(device))
        .collect();

    let control = Rc::new(RefCell::new(Control {
        signals: signals.0,
        ended,
        running: servers.len() as u64,
        devices: devices.clone(),
        done: false,
    }));
    let mut manager: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()?;
    manager.add_subscriber(Box::new(Rc::clone(&control)));
    if let Some(socket) = metrics {
        let metrics =
            MetricsSocket::new(socket, devices.clone()).map_err(io("the metrics socket"))?;
        manager.add_subscriber(Box::new(metrics));
    }
    let unblocked = control.borrow().signals.unblock();
    unblocked.map_err(io("signal handling"))?;
    confine_thread(Role::Control, seccomp)?;
    while !control.borrow().done {
        manager.run()?;
    }
    stop_servers(servers, &mut control.borrow_mut());
    flush(&devices);
    Ok(())
}

type Servers = Vec<(Arc<Device>, Server)>;

/// Starts a server for each device; each adds one to the event counter `ended` when it ends.
fn start_servers(
    devices: Vec<(Arc<Device>, SocketListener)>,
    ended: &OwnedFd,
) -> io::Result<Servers> {
    devices
        .into_iter()
        .map(|(device, listener)| {
            log::info!("{}: listening on {}", device.name(), listener.label());
            let ended = ended.try_clone()?;
            let server = Server::start(Arc::clone(&device), listener, move || {
                // Fails only when the counter is full.
                let _ = rustix::io::write(&ended, &1u64.to_ne_bytes());
            })?;
            Ok((device, server))
        })
        .collect()
}

/// Stops all servers and waits for them, but not for requests that take longer than [`GRACE`].
fn stop_servers(servers: Servers, control: &mut Control) {
    for (_, server) in &servers {
        server.stop();
    }
    if control.await_servers(GRACE) {
        servers.into_iter().for_each(|(_, server)| server.join());
    } else {
        log::info!("a long request is still in progress; exiting without waiting for it");
    }
}

/// Makes the memory of all devices durable.
fn flush(devices: &[Arc<Device>]) {
    for device in devices {
        if let Err(e) = device.memory().flush() {
            log::error!("{}: cannot flush the memory file: {e}", device.name());
        }
    }
}

struct Control {
    signals: SignalPipe,
    ended: OwnedFd,
    /// Number of servers that have not ended.
    running: u64,
    devices: Vec<Arc<Device>>,
    done: bool,
}

const SIGNALS: u32 = 0;
const ENDED: u32 = 1;

impl Control {
    fn handle(&mut self, signal: Signal) {
        match signal {
            Signal::Exit(name) => {
                log::info!("{name}: exiting");
                self.done = true;
            }
            Signal::Summary => {
                for device in &self.devices {
                    for line in summary_lines(device.name(), device.metrics()) {
                        // Printed at any log level, since it was asked for.
                        log_output::print(&line);
                    }
                }
            }
            Signal::HangUp => log::debug!("SIGHUP ignored"),
        }
    }

    /// Counts the servers that have ended since the last call.
    fn count_ended(&mut self) {
        let mut count = [0u8; 8];
        if rustix::io::read(self.ended.as_fd(), &mut count) == Ok(8) {
            self.running = self.running.saturating_sub(u64::from_ne_bytes(count));
        }
    }

    /// Waits up to `limit` for all servers to end; whether they have.
    fn await_servers(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.running > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
            // Whatever this returns, the counter is read below.
            let _ = rustix::event::poll(&mut fds, Timespec::try_from(left).ok().as_ref());
            self.count_ended();
        }
        true
    }
}

impl MutEventSubscriber for Control {
    fn init(&mut self, ops: &mut EventOps) {
        let signals = Events::with_data(&self.signals, SIGNALS, EventSet::IN);
        let ended = Events::with_data(&self.ended, ENDED, EventSet::IN);
        for events in [signals, ended] {
            if let Err(e) = ops.add(events) {
                log::error!("cannot watch a control descriptor: {e}");
                self.done = true;
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            SIGNALS => {
                for signal in self.signals.take() {
                    self.handle(signal);
                }
            }
            _ => {
                self.count_ended();
                self.done |= self.running == 0;
            }
        }
    }
}
