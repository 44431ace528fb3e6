//! Lines for the kernel log: they reach the console complete, and in order with the kernel's own.

use std::{fs::File, io::Write as _};

use guest_agent::FATAL_PREFIX;

/// Writes one line at a level that always reaches the console.
pub(crate) fn mark(text: &str) -> std::io::Result<()> {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    // One write is one record; level 1 reaches the console at every log level in use.
    File::options()
        .write(true)
        .open("/dev/kmsg")?
        .write_all(format!("<1>{line}\n").as_bytes())
}

/// Reports to the harness that the guest cannot continue.
pub(crate) fn fatal(message: &str) {
    if mark(&format!("{FATAL_PREFIX}{message}")).is_err() {
        // There is no kernel log yet.
        eprintln!("{FATAL_PREFIX}{message}");
    }
}
