//! The guest's first process: brings the guest up, then runs what the harness asks for.
//!
//! Process 1 mounts, loads and starts a second copy of itself as the agent; from then on it only
//! collects orphans.

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
