//! Devices that are unplugged and plugged in while programs in the guest use them.

use anyhow::{Context as _, Result, bail};
use guest_agent::{Command, CommandEnd, CommandId};
use rustix::process::Signal;

use super::{context::Context, registry::scenario};
use crate::vm::running::Vm;

/// Requests to this range never complete, as the guest's part expects.
const LOST: &[&str] = &["--fault=drop,range=43M+1M", "--queue-size=1024"];

/// Printed by the guest's part when the host may act.
const READY: &str = "ready\n";

scenario!(an_idle_device_is_unplugged_and_plugged);
fn an_idle_device_is_unplugged_and_plugged(context: &Context<'_>) -> Result<()> {
    let mut vm = context.boot(1)?;
    for round in 0..3 {
        vm.unplug(0).with_context(|| format!("round {round}"))?;
        vm.plug(0).with_context(|| format!("round {round}"))?;
        act(context, &mut vm, "use_a_new_device").with_context(|| format!("round {round}"))?;
    }
    act(context, &mut vm, "hold_nothing")?;
    vm.finish()
}

scenario!(a_device_is_unplugged_with_a_thousand_requests_in_flight);
fn a_device_is_unplugged_with_a_thousand_requests_in_flight(context: &Context<'_>) -> Result<()> {
    let mut vm = context.boot_with(1, LOST)?;
    let holder = begin(context, &mut vm, "hold_an_unplugged_device")?;
    vm.unplug(0)?;
    end(context, &mut vm, holder)?;
    act(context, &mut vm, "hold_nothing")?;
    vm.plug(0)?;
    act(context, &mut vm, "use_a_new_device")?;
    act(context, &mut vm, "hold_nothing")?;
    vm.finish()
}

scenario!(a_backend_dies_under_load);
fn a_backend_dies_under_load(context: &Context<'_>) -> Result<()> {
    let mut vm = context.boot(1)?;
    let load = begin(context, &mut vm, "load_a_dying_device")?;
    vm.end_backend(0, Signal::KILL)?;
    end(context, &mut vm, load)?;
    act(context, &mut vm, "hold_nothing")?;
    vm.unplug(0)?;
    vm.plug(0)?;
    act(context, &mut vm, "use_a_new_device")?;
    act(context, &mut vm, "hold_nothing")?;
    vm.finish()
}

/// Starts an actor and waits until it is ready.
fn begin(context: &Context<'_>, vm: &mut Vm, actor: &str) -> Result<CommandId> {
    let id = vm.start(command(actor))?;
    vm.wait_for(id, READY, context.seconds(60))
        .with_context(|| actor.to_owned())?;
    Ok(id)
}

/// Waits until an actor ends, which has to succeed.
fn end(context: &Context<'_>, vm: &mut Vm, id: CommandId) -> Result<()> {
    match vm.join(id, context.seconds(90))? {
        (CommandEnd::Exited(0), _) => Ok(()),
        (end, output) => bail!("the actor ended with {end:?}; its output:\n{output}"),
    }
}

/// Runs an actor to its end.
fn act(context: &Context<'_>, vm: &mut Vm, actor: &str) -> Result<()> {
    let id = vm.start(command(actor))?;
    end(context, vm, id).with_context(|| actor.to_owned())
}

fn command(actor: &str) -> Command {
    Command {
        arguments: ["guest-suites", "act", actor].map(str::to_owned).to_vec(),
        environment: vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())],
        terminal: None,
    }
}
