//! Guests that sleep and wake while programs in them use a device.

use anyhow::{Context as _, Result, ensure};
use guest_agent::{Command, GuestConfig};

use super::context::{Context, Scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "sleep::a_machine_sleeps_and_wakes_under_load",
    run: a_machine_sleeps_and_wakes_under_load,
}];

/// What the guest's part writes to the kernel log if nothing went wrong: the port to the harness does not
/// work any more in a guest that has slept.
const WELL: &str = "slept: well";

fn a_machine_sleeps_and_wakes_under_load(context: &Context<'_>) -> Result<()> {
    let mut vm = context.testbed.boot(&context.guest(GuestConfig {
        // What goes wrong on the way is to be seen.
        kernel_parameters: vec!["no_console_suspend".to_owned()],
        ..GuestConfig::default()
    }))?;
    vm.start(Command {
        arguments: ["guest-suites", "act", "sleep_and_wake"]
            .map(str::to_owned)
            .to_vec(),
        environment: vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())],
        terminal: None,
    })?;
    let mark = vm
        .wait_for_mark(context.seconds(120))
        .context("the guest did not come back from its sleep")?;
    ensure!(mark == WELL, "{mark}");
    vm.finish_unheard()
}
