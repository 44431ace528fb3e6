//! QEMU's control connection (QMP): commands, replies and events.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    sync::mpsc::Sender,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::vm::event::Event;

/// Number of the command that completes the negotiation and enables events.
const NEGOTIATION: u64 = 0;

/// A connection to QEMU; replies and events arrive in the guest's channel.
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

/// Why QEMU refused a command.
#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Starts a thread that reads `connection` and sends to `events`.
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
                // The console reports the end of QEMU.
                let Ok(line) = line else { return };
                if let Some(event) = event_of(&line)
                    && events.send(event).is_err()
                {
                    return;
                }
            }
        });
        Ok(qmp)
    }

    /// Sends a command and returns the number of its [`Event::QmpReply`].
    pub(crate) fn send(&mut self, command: &str, arguments: Value) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        let line = json!({ "execute": command, "arguments": arguments, "id": number });
        match writeln!(self.connection, "{line}") {
            // The end of QEMU causes an event of its own.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(number),
            result => result
                .map(|()| number)
                .with_context(|| format!("cannot send {command} to QEMU")),
        }
    }
}

/// Translates a line from QEMU; `None` if it is of no interest.
fn event_of(line: &str) -> Option<Event> {
    let line: Line = serde_json::from_str(line).ok()?;
    match (line.event.as_deref(), line.id) {
        // The harness never stops the guest itself.
        (Some("STOP"), _) => Some(Event::Stopped),
        (Some("SUSPEND"), _) => Some(Event::Asleep),
        (Some("DEVICE_DELETED"), _) => {
            let device = line.data?.get("device")?.as_str()?.to_owned();
            Some(Event::Unplugged(device))
        }
        (None, Some(NEGOTIATION)) => None,
        (None, Some(number)) => Some(Event::QmpReply {
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
    fn only_stops_and_suspends_become_events() {
        assert!(matches!(
            event_of(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#),
            Some(Event::Stopped)
        ));
        assert!(matches!(
            event_of(r#"{"event": "SUSPEND"}"#),
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
            assert!(event_of(line).is_none(), "{line}");
        }
    }

    #[test]
    fn replies_carry_the_number_of_their_command() {
        let Some(Event::QmpReply { number, result }) = event_of(
            r#"{"id": 7, "error": {"class": "GenericError", "desc": "Device 'x' not found"}}"#,
        ) else {
            panic!("no reply");
        };
        assert_eq!(
            (number, result),
            (7, Err("Device 'x' not found".to_owned()))
        );
        let Some(Event::Unplugged(device)) =
            event_of(r#"{"event": "DEVICE_DELETED", "data": {"device": "vdma0", "path": "/x"}}"#)
        else {
            panic!("no event");
        };
        assert_eq!(device, "vdma0");
    }
}
