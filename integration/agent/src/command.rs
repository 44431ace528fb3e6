//! Commands in the guest, on pipes or on a terminal; their output is sent as it arrives.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
};

use guest_agent::{Command, CommandEnd, CommandId, Stream, ToHost, WindowSize};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags},
    io::Errno,
    process::{Pid, Signal},
    pty::OpenptFlags,
    termios::Winsize,
};

use crate::link::Link;

/// Maximum number of bytes of output in one message.
const CHUNK: usize = 64 << 10;

/// Number of reads after the command's end: enough for the content of any pipe, and a limit if a
/// background process continues to write.
const DRAIN_ROUNDS: u32 = 32;

/// Search path for programs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin";

/// A command that has been started.
pub(crate) struct Running {
    group: Pid,
    input: Sender<Vec<u8>>,
    terminal: Option<OwnedFd>,
}

impl Running {
    /// Passes bytes to the command's standard input; an empty vector is its end.
    pub(crate) fn input(&self, data: Vec<u8>) {
        // The command may have closed its input.
        let _ = self.input.send(data);
    }

    /// Sets the size of the command's terminal.
    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // A command with a wrong terminal size still works.
            let _ = rustix::termios::tcsetwinsize(terminal, winsize(size));
        }
    }

    /// Signals the command and its children.
    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended a moment ago.
        let _ = rustix::process::kill_process_group(self.group, signal);
    }
}

/// Starts `command`; its output is sent over `link`, and `on_end` is called after the last of it.
pub(crate) fn start(
    link: &Arc<Link>,
    id: CommandId,
    command: &Command,
    on_end: impl FnOnce(CommandEnd) + Send + 'static,
) -> Result<Running, CommandEnd> {
    let started = match command.terminal {
        Some(size) => on_terminal(command, size),
        None => on_pipes(command),
    };
    let mut started = started.map_err(|error| CommandEnd::NotStarted {
        reason: format!(
            "{}: {error}",
            command.arguments.first().map_or("", String::as_str)
        ),
        missing: error.kind() == io::ErrorKind::NotFound,
    })?;
    let group = Pid::from_child(&started.child);
    let (input, inputs) = channel();
    let terminal = started.terminal.take();
    if let Some(writer) = started.input.take() {
        let link = Arc::clone(link);
        std::thread::spawn(move || feed(&link, id, writer, &inputs));
    }
    let link = Arc::clone(link);
    std::thread::spawn(move || on_end(run_to_end(&link, id, started)));
    Ok(Running {
        group,
        input,
        terminal,
    })
}

struct Started {
    child: Child,
    input: Option<File>,
    outputs: Vec<(Stream, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

fn prepare(command: &Command) -> io::Result<std::process::Command> {
    let Some((program, arguments)) = command.arguments.split_first() else {
        return Err(io::Error::other("an empty command"));
    };
    let mut prepared = std::process::Command::new(program);
    prepared
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", "/bin/bash")
        .env("LANG", "C.UTF-8")
        .envs(
            command
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        )
        .current_dir("/root");
    Ok(prepared)
}

fn on_pipes(command: &Command) -> io::Result<Started> {
    let mut child = prepare(command)?
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let input = child
        .stdin
        .take()
        .map(|pipe| File::from(OwnedFd::from(pipe)));
    let mut outputs = Vec::new();
    if let Some(pipe) = child.stdout.take() {
        outputs.push((Stream::Stdout, OwnedFd::from(pipe)));
    }
    if let Some(pipe) = child.stderr.take() {
        outputs.push((Stream::Stderr, OwnedFd::from(pipe)));
    }
    Ok(Started {
        child,
        input,
        outputs,
        terminal: None,
    })
}

fn on_terminal(command: &Command, size: WindowSize) -> io::Result<Started> {
    let master =
        rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::termios::tcsetwinsize(&slave, winsize(size))?;
    let mut prepared = prepare(command)?;
    prepared
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    // SAFETY: the closure runs between fork and exec and makes two system calls, both
    // async-signal-safe; standard input is the terminal's slave by then.
    unsafe {
        prepared.pre_exec(|| {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            Ok(())
        });
    }
    let child = prepared.spawn()?;
    Ok(Started {
        child,
        input: Some(File::from(master.try_clone()?)),
        outputs: vec![(Stream::Stdout, master.try_clone()?)],
        terminal: Some(master),
    })
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Writes what the harness sends to the command's standard input.
fn feed(link: &Link, id: CommandId, mut writer: File, inputs: &Receiver<Vec<u8>>) {
    for data in inputs {
        if data.is_empty() {
            return;
        }
        if writer.write_all(&data).is_err() {
            // The command reads no more. Further input is acknowledged and discarded, so that the
            // harness does not wait.
            drop(writer);
            for data in inputs {
                taken(link, id, data.len());
            }
            return;
        }
        taken(link, id, data.len());
    }
}

fn taken(link: &Link, id: CommandId, bytes: usize) {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    link.send(&ToHost::InputTaken { id, bytes });
}

/// Sends the command's output until the command has ended and all of it has been sent.
fn run_to_end(link: &Arc<Link>, id: CommandId, started: Started) -> CommandEnd {
    let mut child = started.child;
    let Ok((ended, on_end)) = io::pipe() else {
        return CommandEnd::NotStarted {
            reason: "the agent is out of file descriptors".to_owned(),
            missing: false,
        };
    };
    let reader = {
        let link = Arc::clone(link);
        let outputs = started.outputs;
        std::thread::spawn(move || forward(&link, id, outputs, &ended))
    };
    let status = child.wait();
    // From here on only what is in the pipes already is sent: a background process may hold them
    // open indefinitely.
    drop(on_end);
    let forwarded = reader.join();
    match (status, forwarded) {
        (Ok(status), Ok(())) => match (status.code(), status.signal()) {
            (Some(code), _) => CommandEnd::Exited(code),
            (None, signal) => CommandEnd::Killed(signal.unwrap_or_default()),
        },
        (Err(error), _) => CommandEnd::NotStarted {
            reason: format!("cannot wait for the command: {error}"),
            missing: false,
        },
        (_, Err(_)) => CommandEnd::NotStarted {
            reason: "the agent's reading thread panicked".to_owned(),
            missing: false,
        },
    }
}

/// Sends the content of `outputs`; once `ended` hangs up, only what they contain already.
fn forward(
    link: &Link,
    id: CommandId,
    mut outputs: Vec<(Stream, OwnedFd)>,
    ended: &io::PipeReader,
) {
    let mut buffer = vec![0; CHUNK];
    let mut draining = false;
    let mut rounds_left = DRAIN_ROUNDS;
    while !outputs.is_empty() && rounds_left > 0 {
        let mut polled: Vec<PollFd<'_>> = outputs
            .iter()
            .map(|(_, fd)| PollFd::new(fd, PollFlags::IN))
            .collect();
        if !draining {
            polled.push(PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN));
        }
        rounds_left -= u32::from(draining);
        let no_wait = rustix::event::Timespec::default();
        match poll(&mut polled, draining.then_some(&no_wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        if draining && !ready.contains(&true) {
            return;
        }
        draining |= ready.get(outputs.len()).copied().unwrap_or(false);
        let mut index = 0;
        outputs.retain(|(stream, fd)| {
            let is_ready = ready[index];
            index += 1;
            !is_ready || send_some(link, id, *stream, fd, &mut buffer)
        });
    }
}

/// Sends one chunk of output; returns false at its end.
fn send_some(link: &Link, id: CommandId, stream: Stream, fd: &OwnedFd, buffer: &mut [u8]) -> bool {
    match rustix::io::read(fd, &mut *buffer) {
        Ok(0) => false,
        Ok(count) => {
            link.send(&ToHost::Output {
                id,
                stream,
                data: buffer[..count].to_vec(),
            });
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        // The master of a terminal returns EIO once its last slave is closed.
        Err(_) => false,
    }
}
