//! The commands, one file each.

mod bench;
mod clean;
mod demo;
mod doctor;
mod exec;
mod guest;
mod shell;
mod streams;
mod test;

use anyhow::Result;

use crate::cli::Command;

/// Runs `command` and returns the exit status.
pub(crate) fn run(command: Command) -> Result<u8> {
    match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Exec(arguments) => exec::run(arguments),
        Command::Shell(arguments) => shell::run(arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Doctor => doctor::run(),
        Command::Clean => clean::run(),
    }
}
