//! A running guest: its boot, its event loop, and the detection of its death.
//!
//! Everything that can happen (console, agent, processes, signals, input) arrives as an [`Event`]
//! in one channel, and one loop decides what it means.

use std::{
    collections::HashMap,
    io::ErrorKind,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::Stdio,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use guest_agent::{
    CommandId, FrameError, HostCall, HostReply, ToGuest, ToHost, read_frame, write_frame,
};

use super::{
    backend::{Replug, watch_backend},
    command_io::{Background, CommandIo as _},
    event::Event,
};
use crate::{
    failure::{GuestDeath, GuestFailure, RunFailure},
    host::{interrupt, process, process::Process, progress, tools::Tools},
    vm::{
        backend,
        backend::{Backend, BackendSpec},
        console::Console,
        qemu::Machine,
        qmp::Qmp,
        run_dir::RunDir,
    },
};

/// Limit on the time that a panicking kernel takes to print its report.
const PANIC_REPORT: Duration = Duration::from_secs(3);

/// Limit on the time of an immediate response.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// The parts and parameters of a guest.
pub(crate) struct VmSpec {
    /// The machine; `backend` determines its devices.
    pub(crate) machine: Machine,
    /// The devices' backend.
    pub(crate) backend: BackendSpec,
    /// Number of devices.
    pub(crate) devices: u32,
    /// Limit on the time until the guest accepts commands.
    pub(crate) boot_deadline: Duration,
    /// Show the console and QEMU's command line.
    pub(crate) verbose: bool,
    /// Distinguishes the logs of several guests of one run.
    pub(crate) name: String,
}

/// A running guest.
pub(crate) struct Vm {
    // Fields are dropped in this order: QEMU ends before the backends that it is connected to.
    qemu: Process,
    pub(super) backends: Vec<Option<Backend>>,
    pub(super) console: Console,
    agent: UnixStream,
    pub(super) qmp: Qmp,
    events: Receiver<Event>,
    pub(super) sender: Sender<Event>,
    qemu_log: PathBuf,
    pub(super) next_command: u32,
    pub(super) next_mark: u32,
    kernel: String,
    /// Commands in the background.
    pub(super) background: HashMap<CommandId, Background>,
    /// How to start a backend again.
    pub(super) replug: Replug,
}

impl Vm {
    /// Boots a guest and waits until it accepts commands.
    pub(crate) fn boot(spec: VmSpec, tools: &Tools, run: &RunDir) -> Result<Self> {
        let started = Instant::now();
        let (sender, events) = channel();
        let logs = run.logs().join(&spec.name);
        std::fs::create_dir_all(&logs)
            .with_context(|| format!("cannot create {}", logs.display()))?;
        let mut backends = Vec::new();
        for number in 0..spec.devices {
            let backend =
                Backend::start(&spec.backend, number, &spec.machine.run_directory, &logs)?;
            watch_backend(&backend, number, sender.clone())?;
            backends.push(Some(backend));
        }
        let replug = Replug {
            spec: spec.backend.clone(),
            directory: spec.machine.run_directory.clone(),
            logs: logs.clone(),
        };
        let mut machine = spec.machine;
        machine.devices = (0..spec.devices)
            .map(|number| spec.backend.device(number))
            .collect();
        let (agent, agent_end) = UnixStream::pair().context("cannot make a socket pair")?;
        let (qmp, qmp_end) = UnixStream::pair().context("cannot make a socket pair")?;
        // A guest that reads nothing must not block the harness.
        agent
            .set_write_timeout(Some(ANSWER_DEADLINE))
            .context("cannot set a socket's timeout")?;
        let qemu_log = logs.join("qemu.log");
        let mut command =
            machine.command(tools, OwnedFd::from(agent_end), OwnedFd::from(qmp_end))?;
        if spec.verbose {
            progress::say(&format!(
                "vdma: qemu-system-x86_64 {}",
                shell_quoted(&machine.arguments())
            ));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(process::open_log(&qemu_log)?);
        let mut qemu = Process::spawn(&mut command)?;
        // The command holds QEMU's ends of the connections; they have to close when QEMU ends.
        drop(command);
        let stdout = qemu.take_stdout().context("QEMU has no standard output")?;
        let console = Console::watch(
            stdout,
            &logs.join("console.log"),
            spec.verbose,
            sender.clone(),
        )?;
        read_agent(&agent, sender.clone())?;
        let qmp = Qmp::watch(qmp, sender.clone())?;
        let interrupts = sender.clone();
        interrupt::listen(move || {
            // The receiver is gone once the run is over.
            let _ = interrupts.send(Event::Interrupted);
        });
        let mut vm = Self {
            qemu,
            backends,
            console,
            agent,
            qmp,
            events,
            sender,
            qemu_log,
            next_command: 0,
            next_mark: 0,
            kernel: String::new(),
            background: HashMap::new(),
            replug,
        };
        let _step = progress::passing("booting the guest");
        let deadline = started + spec.boot_deadline;
        loop {
            match vm.next_event(Some(deadline))? {
                Some(Event::Agent(ToHost::Ready { kernel })) => {
                    vm.kernel = kernel;
                    return Ok(vm);
                }
                Some(_) => {}
                None => {
                    return Err(vm.died(GuestFailure::BootTimeout(spec.boot_deadline.as_secs())));
                }
            }
        }
    }

    /// The guest's kernel release, as `uname -r` reports it.
    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Returns a sender of events to this guest.
    pub(crate) fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// QEMU's process.
    pub(crate) fn qemu(&mut self) -> &mut Process {
        &mut self.qemu
    }

    /// Returns the next event that this loop does not handle itself; `None` at the deadline.
    ///
    /// The death of the guest is an error. Calls of programs in the guest are handled here.
    pub(super) fn next_event(&mut self, deadline: Option<Instant>) -> Result<Option<Event>> {
        loop {
            let event = match deadline {
                None => self
                    .events
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => self
                    .events
                    .recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            let event = match event {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(anyhow!("all event sources have ended"));
                }
            };
            match event {
                Event::Interrupted => {
                    interrupt::check()?;
                }
                Event::Panic(reason) => {
                    self.await_panic_report();
                    return Err(self.died(GuestFailure::Panic(reason)));
                }
                Event::Fatal(reason) => {
                    return Err(self.died(GuestFailure::Fatal(reason)));
                }
                Event::ConsoleClosed => {
                    interrupt::check()?;
                    let failure = self.qemu_failure()?;
                    return Err(self.died(failure));
                }
                Event::Stopped => {
                    let detail = backend::indented(&process::tail(&self.qemu_log, 0, 20));
                    return Err(self.died(GuestFailure::Stopped { detail }));
                }
                Event::AgentClosed(reason) => {
                    interrupt::check()?;
                    // If QEMU has ended, its status says more than the closed connection.
                    if self.qemu.wait_for(PANIC_REPORT)?.is_some() {
                        let failure = self.qemu_failure()?;
                        return Err(self.died(failure));
                    }
                    return Err(self.died(GuestFailure::AgentLost(reason)));
                }
                Event::BackendEnded(number) => {
                    interrupt::check()?;
                    if let Some(Some(backend)) = self.backends.get_mut(number as usize)
                        && backend.process.try_wait()?.is_some()
                    {
                        let failure = backend.failure()?;
                        return Err(self.died(failure));
                    }
                }
                Event::Agent(ToHost::Call { id, call }) => {
                    let reply = match self.handle_call(&call) {
                        Ok(data) => HostReply::Done(data),
                        Err(error) => HostReply::Refused(format!("{error:#}")),
                    };
                    self.tell(&ToGuest::Reply { id, reply })?;
                }
                Event::Agent(ToHost::Output { id, data, stream })
                    if self.background.contains_key(&id) =>
                {
                    if let Some(background) = self.background.get_mut(&id) {
                        background.output.output(stream, &data)?;
                    }
                    return Ok(Some(Event::Background));
                }
                Event::Agent(ToHost::Ended { id, end }) if self.background.contains_key(&id) => {
                    if let Some(background) = self.background.get_mut(&id) {
                        background.end = Some(end);
                    }
                    return Ok(Some(Event::Background));
                }
                event => return Ok(Some(event)),
            }
        }
    }

    /// Handles a call of a program in the guest.
    fn handle_call(&self, call: &HostCall) -> Result<Vec<u8>> {
        let backend = |device: u32| {
            self.backends
                .get(device as usize)
                .and_then(Option::as_ref)
                .with_context(|| format!("there is no device {device}"))
        };
        match call {
            HostCall::ReadMemory {
                device,
                offset,
                length,
            } => backend(*device)?.read_memory(*offset, (*length).min(1 << 20) as usize),
            HostCall::WriteMemory {
                device,
                offset,
                data,
            } => backend(*device)?
                .write_memory(*offset, data)
                .map(|()| Vec::new()),
        }
    }

    /// Sends a message to the agent.
    pub(super) fn tell(&mut self, message: &ToGuest) -> Result<()> {
        match write_frame(&mut &self.agent, message) {
            Ok(()) => Ok(()),
            Err(FrameError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                let what = "its agent reads no more messages".to_owned();
                Err(self.died(GuestFailure::Silent(what)))
            }
            // The cause of the broken connection has an event of its own.
            Err(FrameError::Io(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a panicking kernel has printed its report.
    fn await_panic_report(&mut self) {
        let deadline = Instant::now() + PANIC_REPORT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                // The kernel reboots after its report, which ends QEMU (`-no-reboot`).
                Ok(Event::ConsoleClosed | Event::Interrupted) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn qemu_failure(&mut self) -> Result<GuestFailure> {
        let status = match self.qemu.wait_for(PANIC_REPORT)? {
            Some(status) => process::describe(status),
            None => "it closed its console but has not ended".to_owned(),
        };
        Ok(GuestFailure::QemuEnded {
            status,
            detail: backend::indented(&process::tail(&self.qemu_log, 0, 10)),
        })
    }

    /// Returns the error for a guest that died.
    pub(super) fn died(&self, failure: GuestFailure) -> anyhow::Error {
        RunFailure::Guest(GuestDeath {
            failure,
            last_lines: self.console.last_lines(),
            log: self.console.log().to_owned(),
        })
        .into()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.qemu.end();
        self.console.wait_until_closed();
    }
}

/// Starts a thread that receives the agent's messages.
fn read_agent(agent: &UnixStream, events: Sender<Event>) -> Result<()> {
    let mut reader = agent.try_clone().context("cannot duplicate a socket")?;
    std::thread::spawn(move || {
        let reason = loop {
            match read_frame(&mut reader) {
                Ok(Some(message)) => {
                    if events.send(Event::Agent(message)).is_err() {
                        return;
                    }
                }
                Ok(None) => break "it hung up".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        let _ = events.send(Event::AgentClosed(reason));
    });
    Ok(())
}

/// Formats `arguments` as a shell would accept them.
fn shell_quoted(arguments: &[String]) -> String {
    arguments
        .iter()
        .map(|argument| {
            if argument.contains([' ', '\'', '"', '$', '\\']) {
                format!("'{}'", argument.replace('\'', "'\\''"))
            } else {
                argument.clone()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}
