//! The `vhost-device-dma` daemon.

use std::process::ExitCode;

use clap::Parser;
use vhost_device_dma::cli::Args;
use vhost_device_dma::control;

fn main() -> ExitCode {
    let args = Args::parse();
    env_logger::Builder::new()
        .parse_filters(&args.log_level)
        .init();
    let result = args
        .open()
        .and_then(|devices| control::run(devices).map_err(anyhow::Error::from));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vhost-device-dma: {e:#}");
            ExitCode::FAILURE
        }
    }
}
