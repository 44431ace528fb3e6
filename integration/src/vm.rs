//! A running guest: booting it, running commands in it, and noticing at once when it dies.
//!
//! Everything that can happen (console, agent, processes, signals, input) arrives as an [`Event`]
//! in one channel, and one loop decides what it means.

use anyhow::{Context, Result, anyhow};
use guest_agent::{
    Command, CommandEnd, CommandId, FrameError, HostCall, HostReply, Stream, ToGuest, ToHost,
    WindowSize, read_frame, write_frame,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::backend::{self, Backend, BackendSpec};
use crate::console::Console;
use crate::failure::{GuestDeath, GuestFailure, RunFailure};
use crate::kernel_log::{MARK_PREFIX, Splat};
use crate::process::{self, Process};
use crate::qemu::{self, Machine};
use crate::qmp::Qmp;
use crate::run_dir::RunDir;
use crate::suite::guests::Collected;
use crate::tools::Tools;
use crate::{interrupt, progress};

/// How long a panicking kernel may take to finish its report.
const PANIC_REPORT: Duration = Duration::from_secs(3);

/// How long the guest may take to answer what takes no time.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// How long the kernel may look for leaks.
const LEAK_DEADLINE: Duration = Duration::from_secs(600);

/// How long the guest may take to let go of a device.
const UNPLUG_DEADLINE: Duration = Duration::from_secs(60);

/// How long a killed command may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The kernel panicked.
    Panic(String),
    /// The guest's first process gives up.
    Fatal(String),
    /// A mark came by in the kernel log.
    Mark(String),
    /// The console ended, and QEMU with it.
    ConsoleClosed,
    /// QEMU stopped the guest of its own accord.
    Stopped,
    /// The guest sleeps, and only QEMU can wake it.
    Asleep,
    /// QEMU's answer to a command: what it returns, or why it refuses.
    Answer {
        /// Number of the command.
        number: u64,
        /// The answer.
        result: Result<Value, String>,
    },
    /// QEMU has taken this device away, with the guest's consent.
    Unplugged(String),
    /// The agent says something.
    Agent(ToHost),
    /// The agent's connection ended.
    AgentClosed(String),
    /// The backend of this device ended.
    BackendEnded(u32),
    /// Input for the running command; none stands for its end.
    Input(Vec<u8>),
    /// The user's terminal has a new size.
    Resized(WindowSize),
    /// A command in the background said something, or ended.
    Background,
    /// A signal arrived.
    Interrupted,
}

/// What a guest is made of.
pub(crate) struct VmSpec {
    /// The machine; its devices are filled in from `backend`.
    pub(crate) machine: Machine,
    /// The devices' backend.
    pub(crate) backend: BackendSpec,
    /// How many devices.
    pub(crate) devices: u32,
    /// How long the guest may take until it takes commands.
    pub(crate) boot_deadline: Duration,
    /// Show the console and QEMU's command line.
    pub(crate) verbose: bool,
    /// Distinguishes the logs of several guests of one run.
    pub(crate) name: String,
}

/// Where a command's output goes and how it is told of what happens.
pub(crate) trait CommandIo {
    /// Output has come.
    fn output(&mut self, stream: Stream, data: &[u8]) -> Result<()>;
    /// The command took input that was sent; more may be sent now.
    fn input_taken(&mut self) {}
}

/// A running guest.
pub(crate) struct Vm {
    // In the order in which they are to end: QEMU before the backends it talks to.
    qemu: Process,
    backends: Vec<Option<Backend>>,
    console: Console,
    agent: UnixStream,
    qmp: Qmp,
    events: Receiver<Event>,
    sender: Sender<Event>,
    qemu_log: PathBuf,
    next_command: u32,
    next_mark: u32,
    kernel: String,
    /// Commands that run on while the harness does something else.
    background: HashMap<CommandId, Background>,
    /// How to start a backend again.
    replug: Replug,
}

/// A command in the background.
#[derive(Default)]
struct Background {
    output: Collected,
    end: Option<CommandEnd>,
}

/// What it takes to plug a device in again.
struct Replug {
    spec: BackendSpec,
    directory: PathBuf,
    logs: PathBuf,
}

impl Vm {
    /// Boots a guest and waits until it takes commands.
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
        // A guest that reads nothing must not hold the harness up.
        agent
            .set_write_timeout(Some(ANSWER_DEADLINE))
            .context("cannot set a socket's timeout")?;
        let qemu_log = logs.join("qemu.log");
        let mut command =
            machine.command(tools, OwnedFd::from(agent_end), OwnedFd::from(qmp_end))?;
        if spec.verbose {
            progress::say(&format!(
                "vdma: qemu-system-x86_64 {}",
                shown(&machine.arguments())
            ));
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(process::open_log(&qemu_log)?);
        let mut qemu = Process::spawn(&mut command)?;
        // The command holds QEMU's ends of the connections, whose closing is to be noticed.
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
            // Nobody listens once the run is over.
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

    /// What `uname -r` says in the guest.
    pub(crate) fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Where events for this guest can be sent to.
    pub(crate) fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// Runs `command` to its end, or kills it after `limit`.
    pub(crate) fn run(
        &mut self,
        command: Command,
        limit: Option<Duration>,
        io: &mut dyn CommandIo,
    ) -> Result<CommandEnd> {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.tell(&ToGuest::Run { id, command })?;
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            match self.next_event(deadline)? {
                Some(Event::Agent(ToHost::Output {
                    id: from,
                    stream,
                    data,
                })) if from == id => io.output(stream, &data)?,
                Some(Event::Agent(ToHost::InputTaken { id: by, .. })) if by == id => {
                    io.input_taken();
                }
                Some(Event::Agent(ToHost::Ended { id: which, end })) if which == id => {
                    return Ok(end);
                }
                Some(Event::Input(data)) => self.tell(&ToGuest::Input { id, data })?,
                Some(Event::Resized(size)) => self.tell(&ToGuest::Resize { id, size })?,
                Some(_) => {}
                None => {
                    let seconds = limit.unwrap_or_default().as_secs();
                    self.kill(id)?;
                    return Err(RunFailure::TimedOut(seconds).into());
                }
            }
        }
    }

    /// Starts `command` and lets it run on while something else is done.
    pub(crate) fn start(&mut self, command: Command) -> Result<CommandId> {
        let id = CommandId(self.next_command);
        self.next_command += 1;
        self.background.insert(id, Background::default());
        self.tell(&ToGuest::Run { id, command })?;
        Ok(id)
    }

    /// Waits until the command `id` has printed `text`.
    pub(crate) fn wait_for(&mut self, id: CommandId, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let Some(background) = self.background.get(&id) else {
                return Err(anyhow!("no such command runs in the background"));
            };
            let output = String::from_utf8_lossy(&background.output.bytes);
            if output.contains(text) {
                return Ok(());
            }
            if let Some(end) = &background.end {
                return Err(anyhow!(
                    "ended ({end:?}) before {text:?}; it said:\n{output}"
                ));
            }
            if self.next_event(Some(deadline))?.is_none() {
                let seconds = limit.as_secs();
                return Err(anyhow!("no {text:?} within {seconds} s"));
            }
        }
    }

    /// Waits for the end of the command `id`, or kills it after `limit`; gives what it printed.
    pub(crate) fn join(&mut self, id: CommandId, limit: Duration) -> Result<(CommandEnd, String)> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(background) = self.background.get_mut(&id)
                && let Some(end) = background.end.take()
            {
                let output = String::from_utf8_lossy(&background.output.bytes).into_owned();
                self.background.remove(&id);
                return Ok((end, output));
            }
            if self.next_event(Some(deadline))?.is_none() {
                let background = self.background.remove(&id).unwrap_or_default();
                self.kill(id)?;
                return Err(anyhow!(
                    "did not end within {} s; it said:\n{}",
                    limit.as_secs(),
                    String::from_utf8_lossy(&background.output.bytes)
                ));
            }
        }
    }

    /// Has QEMU do something.
    pub(crate) fn ask_qemu(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let asked = self.qmp.send(command, arguments)?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Answer { number, result }) if number == asked => {
                    return result.map_err(|reason| anyhow!("QEMU refuses {command}: {reason}"));
                }
                Some(_) => {}
                None => return Err(anyhow!("QEMU does not answer {command}")),
            }
        }
    }

    /// Unplugs device `number`; the guest has to let go of it. Its backend is ended.
    pub(crate) fn unplug(&mut self, number: u32) -> Result<()> {
        let device = qemu::device_id(number);
        let asked = self.qmp.send("device_del", json!({ "id": device }))?;
        let deadline = Instant::now() + UNPLUG_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Answer { number, result }) if number == asked => {
                    result.map_err(|reason| anyhow!("QEMU refuses device_del: {reason}"))?;
                }
                Some(Event::Unplugged(gone)) if gone == device => break,
                Some(_) => {}
                None => {
                    let seconds = UNPLUG_DEADLINE.as_secs();
                    return Err(anyhow!(
                        "the guest did not let go of {device} within {seconds} s"
                    ));
                }
            }
        }
        self.ask_qemu("chardev-remove", json!({ "id": qemu::chardev_id(number) }))?;
        self.end_backend(number, Signal::TERM)
    }

    /// Plugs a new device in where device `number` was, with a new backend.
    pub(crate) fn plug(&mut self, number: u32) -> Result<()> {
        let backend = Backend::start(
            &self.replug.spec,
            number,
            &self.replug.directory,
            &self.replug.logs,
        )?;
        watch_backend(&backend, number, self.sender.clone())?;
        let slot = self
            .backends
            .get_mut(number as usize)
            .with_context(|| format!("there is no slot for device {number}"))?;
        if slot.is_some() {
            return Err(anyhow!("device {number} is plugged in"));
        }
        *slot = Some(backend);
        let device = self.replug.spec.device(number);
        self.ask_qemu("chardev-add", qemu::chardev(number, &device))?;
        self.ask_qemu("device_add", qemu::device(number, &device))?;
        Ok(())
    }

    /// Ends the backend of device `number` without that being the guest's death.
    pub(crate) fn end_backend(&mut self, number: u32, signal: Signal) -> Result<()> {
        // An unplugged device's backend may have ended by itself.
        if let Some(mut backend) = self
            .backends
            .get_mut(number as usize)
            .and_then(Option::take)
        {
            backend.process.signal(signal);
            backend.process.wait()?;
        }
        Ok(())
    }

    /// Waits until everything that the kernel had to say up to now has been read.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let number = self.next_mark;
        self.mark(&format!("settle {number}"))?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Mark(text)) if text == format!("settle {number}") => {
                    self.next_mark += 1;
                    return Ok(());
                }
                Some(_) => {}
                None => {
                    let what = "a line written to the kernel log did not reach the console";
                    return Err(self.died(GuestFailure::Silent(what.to_owned())));
                }
            }
        }
    }

    /// Writes a line to the kernel log.
    pub(crate) fn mark(&mut self, text: &str) -> Result<()> {
        self.tell(&ToGuest::Mark(format!("{MARK_PREFIX}{text}")))
    }

    /// Waits until a program in the guest writes a mark to the kernel log, which is returned; whenever
    /// the machine sleeps meanwhile it is woken.
    pub(crate) fn wait_for_mark(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Mark(text)) => return Ok(text),
                Some(Event::Asleep) => {
                    self.ask_qemu("system_wakeup", serde_json::json!({}))?;
                }
                Some(_) => {}
                None => {
                    let what = format!("nothing in the kernel log within {} s", limit.as_secs());
                    return Err(self.died(GuestFailure::Silent(what)));
                }
            }
        }
    }

    /// The kernel's complaints since the last call.
    pub(crate) fn take_splats(&mut self) -> Vec<Splat> {
        self.console.take_splats()
    }

    /// What the kernel's leak detector finds; nothing in kernels that have none.
    pub(crate) fn leaks(&mut self) -> Result<Option<Splat>> {
        self.tell(&ToGuest::FindLeaks)?;
        let deadline = Instant::now() + LEAK_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Agent(ToHost::Leaks(report))) => {
                    return Ok((!report.trim().is_empty()).then(|| Splat {
                        lines: report.lines().map(str::to_owned).collect(),
                    }));
                }
                Some(_) => {}
                None => {
                    let what = "the kernel's leak detector did not end".to_owned();
                    return Err(self.died(GuestFailure::Silent(what)));
                }
            }
        }
    }

    /// Ends a guest that has done its work; fails if its kernel complained about itself.
    pub(crate) fn finish(mut self) -> Result<()> {
        let leaks = self.leaks()?;
        self.settle()?;
        self.judge(leaks)
    }

    /// As [`Vm::finish`], for a guest whose agent cannot be reached any more: leaks are not looked for.
    pub(crate) fn finish_unheard(mut self) -> Result<()> {
        self.judge(None)
    }

    /// Fails if the kernel complained about itself, on its console or with `leaks`.
    fn judge(&mut self, leaks: Option<Splat>) -> Result<()> {
        let mut splats = self.take_splats();
        splats.extend(leaks);
        if splats.is_empty() {
            return Ok(());
        }
        Err(RunFailure::Splat {
            count: splats.len(),
            text: splats
                .iter()
                .flat_map(|splat| &splat.lines)
                .map(|line| format!("\n    {line}"))
                .collect(),
            log: self.console.log().to_owned(),
        }
        .into())
    }

    /// The backend of device `number`.
    pub(crate) fn backend(&mut self, number: u32) -> Result<&mut Backend> {
        self.backends
            .get_mut(number as usize)
            .and_then(Option::as_mut)
            .with_context(|| format!("there is no device {number}"))
    }

    /// QEMU's process.
    pub(crate) fn qemu(&mut self) -> &mut Process {
        &mut self.qemu
    }

    /// Ends a command that took too long; one that cannot be ended is a dead guest.
    fn kill(&mut self, id: CommandId) -> Result<()> {
        let kill = ToGuest::Signal {
            id,
            signal: Signal::KILL.as_raw(),
        };
        self.tell(&kill)?;
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::Agent(ToHost::Ended { id: which, .. })) if which == id => {
                    return Ok(());
                }
                Some(_) => {}
                None => break,
            }
        }
        // What it hangs in is worth knowing.
        self.tell(&ToGuest::Blocked)?;
        self.settle()?;
        let what = "a command cannot be killed; the console's end shows what it waits for";
        Err(self.died(GuestFailure::Silent(what.to_owned())))
    }

    /// The next event that is not dealt with here; `None` at the deadline.
    ///
    /// What means the guest's death is an error. Calls of programs in the guest are answered.
    fn next_event(&mut self, deadline: Option<Instant>) -> Result<Option<Event>> {
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
                    return Err(anyhow!("the harness lost all sources of events"));
                }
            };
            match event {
                Event::Interrupted => {
                    interrupt::check()?;
                }
                Event::Panic(reason) => {
                    self.let_report_end();
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
                    // QEMU's own end says more; it closes both.
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
                    let reply = match self.answer(&call) {
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

    /// Does what a program in the guest asks for.
    fn answer(&self, call: &HostCall) -> Result<Vec<u8>> {
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
    fn tell(&mut self, message: &ToGuest) -> Result<()> {
        match write_frame(&mut &self.agent, message) {
            Ok(()) => Ok(()),
            Err(FrameError::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                let what = "its agent takes no more messages".to_owned();
                Err(self.died(GuestFailure::Silent(what)))
            }
            // Whatever broke the connection is reported by the event that it causes.
            Err(FrameError::Io(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the console until a panicking kernel has said everything.
    fn let_report_end(&mut self) {
        let deadline = Instant::now() + PANIC_REPORT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                // The kernel reboots after its report, and QEMU ends instead.
                Ok(Event::ConsoleClosed | Event::Interrupted) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn qemu_failure(&mut self) -> Result<GuestFailure> {
        let status = match self.qemu.wait_for(PANIC_REPORT)? {
            Some(status) => process::describe(status),
            None => "it closed its console but is still there".to_owned(),
        };
        Ok(GuestFailure::QemuEnded {
            status,
            detail: backend::indented(&process::tail(&self.qemu_log, 0, 10)),
        })
    }

    /// The error for a guest that died.
    fn died(&self, failure: GuestFailure) -> anyhow::Error {
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

/// Reports the end of a backend's process.
fn watch_backend(backend: &Backend, number: u32, events: Sender<Event>) -> Result<()> {
    let pid = i32::try_from(backend.process.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process without a number")?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .context("cannot watch the backend's process")?;
    std::thread::spawn(move || {
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut polled, None) {}
        // Nobody listens once the run is over.
        let _ = events.send(Event::BackendEnded(number));
    });
    Ok(())
}

/// Reads what the agent sends in a thread of its own.
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

/// A command line that a shell would take.
fn shown(arguments: &[String]) -> String {
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
