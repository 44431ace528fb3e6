//! QEMU's control connection: what it is asked to do, and what it says of its own accord.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    sync::mpsc::Sender,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::vm::event::Event;

/// Number of the command that ends the negotiation and lets events through.
const NEGOTIATION: u64 = 0;

/// A connection to QEMU; answers and events arrive in the guest's channel.
#[derive(Debug)]
pub(crate) struct Qmp {
    connection: UnixStream,
    next: u64,
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
struct Line {
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
    error: Option<Refusal>,
    #[serde(rename = "return")]
    result: Option<Value>,
}

/// Why QEMU does not do what it was asked.
#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Reads `connection` in a thread of its own, which reports to `events`.
    pub(crate) fn watch(connection: UnixStream, events: Sender<Event>) -> Result<Self> {
        let reader = connection
            .try_clone()
            .context("cannot duplicate a socket")?;
        let mut qmp = Self {
            connection,
            next: NEGOTIATION,
        };
        qmp.send("qmp_capabilities", json!({}))?;
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines() {
                // A QEMU that is gone is noticed by its console.
                let Ok(line) = line else { return };
                if let Some(event) = meaning(&line)
                    && events.send(event).is_err()
                {
                    return;
                }
            }
        });
        Ok(qmp)
    }

    /// Sends a command; gives the number of the [`Event::Answer`] to it.
    pub(crate) fn send(&mut self, command: &str, arguments: Value) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        let line = json!({ "execute": command, "arguments": arguments, "id": number });
        match writeln!(self.connection, "{line}") {
            // Its end is reported by the event that it causes.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(number),
            result => result
                .map(|()| number)
                .with_context(|| format!("cannot ask QEMU for {command}")),
        }
    }
}

/// What a line from QEMU means, if anything.
fn meaning(line: &str) -> Option<Event> {
    let line: Line = serde_json::from_str(line).ok()?;
    match (line.event.as_deref(), line.id) {
        // Nobody here asks it to stop the guest.
        (Some("STOP"), _) => Some(Event::Stopped),
        (Some("SUSPEND"), _) => Some(Event::Asleep),
        (Some("DEVICE_DELETED"), _) => {
            let device = line.data?.get("device")?.as_str()?.to_owned();
            Some(Event::Unplugged(device))
        }
        (None, Some(NEGOTIATION)) => None,
        (None, Some(number)) => Some(Event::Answer {
            number,
            result: match line.error {
                Some(refusal) => Err(refusal.desc),
                None => Ok(line.result.unwrap_or_default()),
            },
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_and_sleeps_are_told_from_the_rest() {
        assert!(matches!(
            meaning(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#),
            Some(Event::Stopped)
        ));
        assert!(matches!(
            meaning(r#"{"event": "SUSPEND"}"#),
            Some(Event::Asleep)
        ));
        for line in [
            r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#,
            r#"{"return": {}, "id": 0}"#,
            r#"{"event": "RESUME"}"#,
            r#"{"event": "WAKEUP"}"#,
            r#"{"event": "SHUTDOWN", "data": {"reason": "STOP"}}"#,
            r#"{"event": "DEVICE_DELETED", "data": {"path": "/machine/peripheral/x/bus"}}"#,
            "nonsense",
        ] {
            assert!(meaning(line).is_none(), "{line}");
        }
    }

    #[test]
    fn answers_belong_to_their_commands() {
        let Some(Event::Answer { number, result }) = meaning(
            r#"{"id": 7, "error": {"class": "GenericError", "desc": "Device 'x' not found"}}"#,
        ) else {
            panic!("no answer");
        };
        assert_eq!(
            (number, result),
            (7, Err("Device 'x' not found".to_owned()))
        );
        let Some(Event::Unplugged(device)) =
            meaning(r#"{"event": "DEVICE_DELETED", "data": {"device": "vdma0", "path": "/x"}}"#)
        else {
            panic!("no event");
        };
        assert_eq!(device, "vdma0");
    }
}
