//! QEMU's control connection: what QEMU says of its own accord.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use crate::vm::Event;

/// The command that ends the negotiation and lets events through.
const NEGOTIATE: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n";

/// A line from QEMU; all that is not an event is passed over.
#[derive(Deserialize)]
struct Line {
    event: Option<String>,
}

/// Reads `connection` in a thread of its own and reports to `events` when QEMU stops the guest.
pub(crate) fn watch(connection: &UnixStream, events: Sender<Event>) -> Result<()> {
    let mut connection = connection
        .try_clone()
        .context("cannot duplicate a socket")?;
    std::thread::spawn(move || {
        // A QEMU that is gone is noticed by its console.
        if connection.write_all(NEGOTIATE).is_err() {
            return;
        }
        for line in BufReader::new(connection).lines() {
            let Ok(line) = line else { return };
            if is_stop(&line) && events.send(Event::Stopped).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Whether QEMU says that it has stopped the guest: nobody here asks it to.
fn is_stop(line: &str) -> bool {
    serde_json::from_str::<Line>(line).is_ok_and(|line| line.event.as_deref() == Some("STOP"))
}

#[cfg(test)]
mod tests {
    use super::is_stop;

    #[test]
    fn only_a_stop_is_a_stop() {
        assert!(is_stop(
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#
        ));
        for line in [
            r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "RESUME"}"#,
            r#"{"event": "SHUTDOWN", "data": {"reason": "STOP"}}"#,
            "nonsense",
        ] {
            assert!(!is_stop(line), "{line}");
        }
    }
}
