//! The `vhost-device-dma` backend.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vhost_device_dma::{
    cli::Args,
    control::{self, Signals},
    sandbox, sigbus,
};

fn main() -> ExitCode {
    // QEMU's conventions for backends: other arguments are ignored then, even invalid ones.
    if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        println!("{}", Args::capabilities());
        return ExitCode::SUCCESS;
    }
    let args = Args::read();
    env_logger::Builder::new()
        .parse_filters(&args.log_filter())
        .init();
    match run(&args) {
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
