//! Commands in a guest, in the foreground and in the background.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use guest_agent::{Command, CommandEnd, CommandId, ToGuest, ToHost};
use rustix::process::Signal;

use super::{
    command_io::{Background, CommandIo},
    event::Event,
    running::Vm,
};
use crate::failure::{GuestFailure, RunFailure};

/// How long a killed command may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

impl Vm {
    /// Runs `command` until it ends, or kills it after `limit`.
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

    /// Starts `command` in the background.
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
                    "ended ({end:?}) before {text:?}; its output:\n{output}"
                ));
            }
            if self.next_event(Some(deadline))?.is_none() {
                let seconds = limit.as_secs();
                return Err(anyhow!("no {text:?} within {seconds} s"));
            }
        }
    }

    /// Waits until the command `id` ends, or kills it after `limit`; returns its output as well.
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
                    "did not end within {} s; its output:\n{}",
                    limit.as_secs(),
                    String::from_utf8_lossy(&background.output.bytes)
                ));
            }
        }
    }

    /// Kills a command that took too long; if it does not die, the guest counts as dead.
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
        // The report shows where it is blocked.
        self.tell(&ToGuest::ShowBlockedTasks)?;
        self.sync_kernel_log()?;
        let what = "a command cannot be killed; the end of the console shows where it is blocked";
        Err(self.died(GuestFailure::Silent(what.to_owned())))
    }
}
