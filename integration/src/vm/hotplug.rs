//! Plugging and unplugging devices with their backends, through QMP commands.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    backend::watch_backend,
    event::Event,
    running::{ANSWER_DEADLINE, Vm},
};
use crate::vm::{backend::Backend, qemu};

/// Limit on the time that the guest takes to release a device.
const UNPLUG_DEADLINE: Duration = Duration::from_secs(60);

impl Vm {
    /// Has QEMU execute a QMP command and returns its result.
    pub(crate) fn execute_qmp(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let sent = self.qmp.send(command, arguments)?;
        let deadline = Instant::now() + ANSWER_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::QmpReply { number, result }) if number == sent => {
                    return result.map_err(|reason| anyhow!("QEMU refuses {command}: {reason}"));
                }
                Some(_) => {}
                None => return Err(anyhow!("QEMU does not reply to {command}")),
            }
        }
    }

    /// Unplugs device `number`, which the guest has to release, and terminates its backend.
    pub(crate) fn unplug(&mut self, number: u32) -> Result<()> {
        let device = qemu::device_id(number);
        let sent = self.qmp.send("device_del", json!({ "id": device }))?;
        let deadline = Instant::now() + UNPLUG_DEADLINE;
        loop {
            match self.next_event(Some(deadline))? {
                Some(Event::QmpReply { number, result }) if number == sent => {
                    result.map_err(|reason| anyhow!("QEMU refuses device_del: {reason}"))?;
                }
                Some(Event::Unplugged(gone)) if gone == device => break,
                Some(_) => {}
                None => {
                    let seconds = UNPLUG_DEADLINE.as_secs();
                    return Err(anyhow!(
                        "the guest did not release {device} within {seconds} s"
                    ));
                }
            }
        }
        self.execute_qmp("chardev-remove", json!({ "id": qemu::chardev_id(number) }))?;
        self.end_backend(number, Signal::TERM)
    }

    /// Plugs in a new device in the place of device `number`, with a new backend.
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
        self.execute_qmp("chardev-add", qemu::chardev(number, &device))?;
        self.execute_qmp("device_add", qemu::device(number, &device))?;
        Ok(())
    }

    /// Ends the backend of device `number`; the guest does not count as dead for it.
    pub(crate) fn end_backend(&mut self, number: u32, signal: Signal) -> Result<()> {
        // The backend of an unplugged device may have ended by itself.
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

    /// The backend of device `number`.
    pub(crate) fn backend(&mut self, number: u32) -> Result<&mut Backend> {
        self.backends
            .get_mut(number as usize)
            .and_then(Option::as_mut)
            .with_context(|| format!("there is no device {number}"))
    }
}
