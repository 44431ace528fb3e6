//! `vdma`: looks at vdma devices and moves data to and from them.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdma: {error:#}");
            ExitCode::FAILURE
        }
    }
}
