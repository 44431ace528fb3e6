//! `cargo vm exec`: one command in a fresh guest, with this process's standard streams.

use std::time::Duration;

use anyhow::Result;
use guest_agent::{Command, CommandEnd};

use super::{
    guest::{guest_spec, status_of, wanted},
    streams::Inherited,
};
use crate::{
    cli::Exec,
    host::{cache::Cache, progress},
    testbed::boot::Testbed,
};

/// Runs the command and returns its exit status.
pub(crate) fn run(arguments: Exec) -> Result<u8> {
    let cache = Cache::open()?;
    let testbed = Testbed::provide(&cache, &wanted(&arguments.guest))?;
    let mut vm = testbed.boot(&guest_spec(&arguments.guest))?;
    let command = Command {
        arguments: arguments.command,
        ..Command::default()
    };
    let mut io = Inherited::new(vm.sender());
    let end = vm.run(command, arguments.timeout.map(Duration::from_secs), &mut io)?;
    if let CommandEnd::NotStarted { reason, .. } = &end {
        progress::say(&format!("cargo vm: cannot run {reason}"));
    }
    vm.finish()?;
    Ok(status_of(&end))
}
