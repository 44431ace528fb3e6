//! The VM harness behind `cargo vm`: it builds the environment that guests run in, boots them with
//! backend and driver, runs commands and suites in them, and reports every way in which that can
//! fail.

// A scenario that is not registered is dead code, and would silently not run.
#![deny(dead_code)]

mod cli;
mod commands;
mod failure;
mod host;
mod image;
mod kernel;
mod measure;
mod test;
mod testbed;
mod vm;

use clap::Parser as _;

use crate::host::{interrupt, progress};

/// Runs `cargo vm` with this process's arguments and returns the exit status.
#[must_use]
pub fn run() -> u8 {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    // cargo passes `vm` when it runs this as a subcommand rather than through the alias.
    if arguments.get(1).is_some_and(|argument| argument == "vm") {
        arguments.remove(1);
    }
    let cli = match cli::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() {
                failure::USAGE
            } else {
                0
            };
            // A closed standard output is not a reason to fail.
            let _ = error.print();
            return status;
        }
    };
    match interrupt::install().and_then(|()| commands::run(cli.command)) {
        Ok(status) => status,
        Err(error) => {
            progress::say(&format!("cargo vm: {error:#}"));
            failure::exit_status(&error)
        }
    }
}
