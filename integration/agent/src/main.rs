//! The guest's first process: boots the guest, then runs commands for the harness.
//!
//! Process 1 mounts file systems, loads modules and starts a second copy of itself as the agent;
//! after that it only reaps orphans.

mod agent;
mod command;
mod init;
mod kernel_log;
mod leaks;
mod link;
mod loopback;

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => {
            let error = init::run();
            kernel_log::fatal(&error);
            init::power_off()
        }
        Some("agent") => match agent::serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                kernel_log::fatal(&error);
                ExitCode::FAILURE
            }
        },
        Some(other) => {
            eprintln!(
                "guest-agent: unknown argument {other:?}; this is a test guest's first process"
            );
            ExitCode::from(2)
        }
    }
}
