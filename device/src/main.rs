//! The `vhost-device-dma` backend.

use std::{process::ExitCode, time::Duration};

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhost_device_dma::{
    cli::Args,
    control::{self, Signals},
    log_output, sandbox, sigbus,
};

/// How long the last log lines may take. The process is specified to exit within 200 ms of a
/// signal.
const FLUSH_LIMIT: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    // QEMU's conventions for backends: other arguments are ignored then, even invalid ones.
    if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        println!("{}", Args::capabilities());
        return ExitCode::SUCCESS;
    }
    let args = Args::read();
    log_output::install(&args.log_filter());
    let result = run(&args);
    log_output::flush(FLUSH_LIMIT);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vhost-device-dma: {}", one_line(&e));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    raise_file_limit();
    let signals = Signals::install()?;
    sigbus::install_handler();
    let metrics = args.open_metrics()?;
    let devices = args.open()?;
    sandbox::confine_process(&args.sandbox())?;
    log_output::start(args.seccomp).context("cannot start the thread for the log")?;
    Ok(control::run(signals, devices, metrics, args.seccomp)?)
}

/// The error and its causes, in one line. Most messages already end with their cause.
fn one_line(error: &anyhow::Error) -> String {
    error
        .chain()
        .skip(1)
        .fold(error.to_string(), |text, cause| {
            let cause = cause.to_string();
            if text.contains(&cause) {
                text
            } else {
                format!("{text}: {cause}")
            }
        })
}

/// Raises the soft limit on open files, which is low only for programs that use `select`: each
/// queue of each front end takes descriptors.
fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit on open files: {e}");
    }
}
