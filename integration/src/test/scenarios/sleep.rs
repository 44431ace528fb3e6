//! Guests that are suspended and woken while programs in them use a device.

use anyhow::{Context as _, Result, ensure};
use guest_agent::{Command, GuestConfig};

use super::{context::Context, registry::scenario};

/// The actor writes this to the kernel log on success: after a suspend the guest's port to the
/// harness no longer works.
const WELL: &str = "slept: well";

scenario!(a_guest_suspends_and_wakes_under_load);
fn a_guest_suspends_and_wakes_under_load(context: &Context<'_>) -> Result<()> {
    let mut vm = context.testbed.boot(&context.guest(GuestConfig {
        // The console has to show errors during suspend.
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
        .context("the guest did not wake from suspend")?;
    ensure!(mark == WELL, "{mark}");
    vm.finish_without_agent()
}
