//! `cargo vm demo`: a guest in which every part is demonstrated.

use std::path::PathBuf;

use anyhow::Result;
use guest_agent::{Command, CommandEnd, GuestConfig};

use super::{guest::status_of, streams::Inherited};
use crate::{
    cli::Demo,
    failure::RunFailure,
    host::{cache::Cache, progress},
    testbed::{boot::Testbed, guest::GuestSpec, provide::Wanted},
};

/// The guest's part of the demo.
const PROGRAM: &str = "vdma-demo";

/// A real file for the demo to transfer: the guest's own kernel image.
const FILE: &str = "/root/vmlinuz";

/// Time limit of the demo.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

/// Runs the demo and returns its exit status.
pub(crate) fn run(arguments: &Demo) -> Result<u8> {
    let cache = Cache::open()?;
    let testbed = Testbed::provide(
        &cache,
        &Wanted {
            mirror: arguments.environment.mirror.clone(),
            refresh: arguments.environment.refresh,
            kernel: arguments.environment.kernel.clone(),
            package_sets: vec![Vec::new()],
            accel: arguments.environment.accel,
            driver: true,
            counting_plugin: false,
        },
    )?;
    let mut vm = testbed.boot(&GuestSpec {
        name: "demo".to_owned(),
        config: GuestConfig {
            visible_memory: true,
            ..GuestConfig::default()
        },
        copies: vec![(testbed.kernel.image.clone(), PathBuf::from(FILE))],
        verbose: arguments.verbose,
        ..GuestSpec::default()
    })?;
    progress::say(&format!(
        "vdma: guest with kernel {} under {}, device and driver are up",
        vm.kernel(),
        testbed.accel.name()
    ));
    let command = Command {
        arguments: vec![PROGRAM.to_owned(), FILE.to_owned()],
        ..Command::default()
    };
    let mut io = Inherited::output_only();
    let end = vm.run(command, Some(LIMIT), &mut io)?;
    vm.finish()?;
    match &end {
        CommandEnd::Exited(0) => Ok(0),
        CommandEnd::NotStarted { reason, .. } => {
            Err(RunFailure::Usage(format!("the guest has no {PROGRAM}: {reason}")).into())
        }
        end => Ok(status_of(end)),
    }
}
