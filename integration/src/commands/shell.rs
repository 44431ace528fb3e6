//! `cargo vm shell`: a root shell on a new terminal in a fresh guest.

use std::time::Duration;

use anyhow::{Context, Result};
use guest_agent::{Command, WindowSize};
use rustix::termios::{OptionalActions, Termios};
use signal_hook::{consts::SIGWINCH, iterator::Signals};

use super::{
    guest::{guest_spec, status_of, wanted},
    streams::Inherited,
};
use crate::{
    cli::Shell,
    failure::RunFailure,
    host::{cache::Cache, progress},
    testbed::boot::Testbed,
    vm::event::Event,
};

/// Runs the shell and returns its exit status.
pub(crate) fn run(arguments: Shell) -> Result<u8> {
    let stdin = rustix::stdio::stdin();
    if !rustix::termios::isatty(stdin) {
        return Err(RunFailure::Usage(
            "`cargo vm shell` needs a terminal; without one, `cargo vm exec -- sh` reads commands \
             from standard input"
                .to_owned(),
        )
        .into());
    }
    let cache = Cache::open()?;
    let testbed = Testbed::provide(&cache, &wanted(&arguments.guest))?;
    let mut vm = testbed.boot(&guest_spec(&arguments.guest))?;
    progress::say(&format!(
        "vdma: guest with kernel {}; `exit` or Ctrl-D ends it",
        vm.kernel()
    ));
    let events = vm.sender();
    let mut signals = Signals::new([SIGWINCH]).context("cannot watch the terminal's size")?;
    std::thread::spawn(move || {
        for _ in &mut signals {
            // The receiver is gone once the run is over.
            let _ = events.send(Event::Resized(size()));
        }
    });
    let command = Command {
        arguments: vec!["bash".to_owned(), "--login".to_owned()],
        environment: vec![(
            "TERM".to_owned(),
            std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned()),
        )],
        terminal: Some(size()),
    };
    let end = {
        let _raw = RawTerminal::enter()?;
        let mut io = Inherited::new(vm.sender());
        vm.run(command, arguments.timeout.map(Duration::from_secs), &mut io)?
    };
    vm.finish()?;
    Ok(status_of(&end))
}

/// Size of this process's terminal.
fn size() -> WindowSize {
    match rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => WindowSize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        _ => WindowSize {
            rows: 24,
            columns: 80,
        },
    }
}

/// The terminal in raw mode, so that every key reaches the guest; dropping this restores its mode.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self> {
        let stdin = rustix::stdio::stdin();
        let before =
            rustix::termios::tcgetattr(stdin).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(stdin, OptionalActions::Drain, &raw)
            .context("cannot set the terminal's mode")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A failure cannot be handled here.
        let _ = rustix::termios::tcsetattr(
            rustix::stdio::stdin(),
            OptionalActions::Drain,
            &self.before,
        );
    }
}
