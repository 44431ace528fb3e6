//! The control loop of the main thread: signals, the metrics socket, and the end of servers.

mod metrics_socket;
mod signals;

use std::{
    cell::RefCell,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use thiserror::Error;

use self::{
    metrics_socket::MetricsSocket,
    signals::{Signal, SignalPipe},
};
use crate::{
    metrics::summary_lines,
    sandbox::{Role, SandboxError, SeccompMode, confine_thread},
    vhost_user::{Device, Server, SocketListener},
};

/// How long requests that are under way may take to end after a signal. The whole end is promised
/// within 200 ms.
const GRACE: Duration = Duration::from_millis(50);

/// Why the control loop ended, or did not start.
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
        /// What it was for.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// Signals, taken over from now on. Before any socket can be seen: whoever sees one may send a
/// signal and count on an orderly end.
pub struct Signals(SignalPipe);

impl Signals {
    /// Takes over the signals that mean something here.
    ///
    /// # Errors
    ///
    /// The handlers or their pipe cannot be made.
    pub fn install() -> Result<Self, ControlError> {
        let what = "signal handling";
        SignalPipe::new()
            .map(Self)
            .map_err(|source| ControlError::Io { what, source })
    }
}

/// Serves all devices until SIGTERM or SIGINT comes, or until no server is left. Then flushes the
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
    let ended: OwnedFd =
        rustix::event::eventfd(0, flags).map_err(|e| io("the control loop")(e.into()))?;

    let mut servers = Vec::with_capacity(devices.len());
    for (device, listener) in devices {
        log::info!("{}: listening on {}", device.name(), listener.label());
        let ended = ended.try_clone().map_err(io("a server"))?;
        let server = Server::start(Arc::clone(&device), listener, move || {
            // Fails only when the counter is full.
            let _ = rustix::io::write(&ended, &1u64.to_ne_bytes());
        })
        .map_err(io("a server"))?;
        servers.push((device, server));
    }

    let state = Rc::new(RefCell::new(Control {
        signals: signals.0,
        ended,
        running: servers.len() as u64,
        devices: servers
            .iter()
            .map(|(device, _)| Arc::clone(device))
            .collect(),
        done: false,
    }));
    let mut manager: EventManager<Box<dyn MutEventSubscriber>> = EventManager::new()?;
    manager.add_subscriber(Box::new(Rc::clone(&state)));
    if let Some(socket) = metrics {
        let devices = state.borrow().devices.clone();
        let metrics = MetricsSocket::new(socket, devices).map_err(io("the metrics socket"))?;
        manager.add_subscriber(Box::new(metrics));
    }
    state
        .borrow()
        .signals
        .begin()
        .map_err(io("signal handling"))?;
    confine_thread(Role::Control, seccomp)?;
    while !state.borrow().done {
        manager.run()?;
    }

    for (_, server) in &servers {
        server.stop();
    }
    if state.borrow_mut().await_servers(GRACE) {
        servers.into_iter().for_each(|(_, server)| server.join());
    } else {
        log::info!("a long request is still under way, and is given up");
    }
    for device in &state.borrow().devices {
        if let Err(e) = device.memory().flush() {
            log::error!("{}: cannot flush the memory file: {e}", device.name());
        }
    }
    Ok(())
}

struct Control {
    signals: SignalPipe,
    ended: OwnedFd,
    /// Servers that have not ended.
    running: u64,
    devices: Vec<Arc<Device>>,
    done: bool,
}

const SIGNALS: u32 = 0;
const ENDED: u32 = 1;

impl Control {
    /// Counts the servers that have ended since the last call.
    fn count_ended(&mut self) {
        let mut count = [0u8; 8];
        if rustix::io::read(self.ended.as_fd(), &mut count) == Ok(8) {
            self.running = self.running.saturating_sub(u64::from_ne_bytes(count));
        }
    }

    /// Waits for all servers to end, but no longer than `limit`; whether they have.
    fn await_servers(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.running > 0 {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
            // Whatever it returns, the counter is looked at below.
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
                    match signal {
                        Signal::End(name) => {
                            log::info!("{name}: ending");
                            self.done = true;
                        }
                        Signal::Summary => {
                            for device in &self.devices {
                                for line in summary_lines(device.name(), device.metrics()) {
                                    // Asked for, so whatever the log level. If nobody reads
                                    // standard error any more, there is nobody to tell.
                                    let _ = writeln!(std::io::stderr(), "{line}");
                                }
                            }
                        }
                        Signal::HangUp => log::debug!("SIGHUP ignored"),
                    }
                }
            }
            _ => {
                self.count_ended();
                self.done |= self.running == 0;
            }
        }
    }
}
