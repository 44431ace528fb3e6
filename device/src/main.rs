//! The `vhost-device-dma` daemon.

use std::process::ExitCode;

use vhost_device_dma::cli::Args;
use vhost_device_dma::control::{self, Signals};
use vhost_device_dma::{bus_error, sandbox};

fn main() -> ExitCode {
    // QEMU's conventions for back ends: all else is ignored then, whether it makes sense or not.
    if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        println!("{}", Args::capabilities());
        return ExitCode::SUCCESS;
    }
    let args = Args::read();
    env_logger::Builder::new()
        .parse_filters(&args.log_level)
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vhost-device-dma: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let signals = Signals::install()?;
    bus_error::install();
    let metrics = args.open_metrics()?;
    let devices = args.open()?;
    sandbox::confine_process(&args.sandbox())?;
    Ok(control::run(signals, devices, metrics, args.seccomp)?)
}
