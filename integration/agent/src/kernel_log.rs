//! Lines in the kernel log: they reach the console whole, in order with the kernel's own.

use std::{fs::File, io::Write as _};

use guest_agent::FATAL_PREFIX;

/// Writes one line at a level that always reaches the console.
pub(crate) fn mark(text: &str) -> std::io::Result<()> {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    // One write is one record; level 1 is above every console log level in use.
    File::options()
        .write(true)
        .open("/dev/kmsg")?
        .write_all(format!("<1>{line}\n").as_bytes())
}

/// Tells the harness that the guest cannot go on.
pub(crate) fn fatal(message: &str) {
    if mark(&format!("{FATAL_PREFIX}{message}")).is_err() {
        // No kernel log yet: the console is what is left.
        eprintln!("{FATAL_PREFIX}{message}");
    }
}
