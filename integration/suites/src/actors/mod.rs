//! The guest's part in scenarios: programs that use a device while the harness does something to
//! it. The harness starts them as `guest-suites act NAME`.

mod hotplug;
mod outage;
mod ready;
mod sleep;

use anyhow::Result;

/// An actor: its name, and its function.
type Actor = (&'static str, fn() -> Result<()>);

/// All actors.
pub(crate) const ACTORS: &[Actor] = &[
    (
        "hold_an_unplugged_device",
        hotplug::hold_an_unplugged_device,
    ),
    ("load_a_dying_device", outage::load_a_dying_device),
    ("use_a_new_device", hotplug::use_a_new_device),
    ("hold_nothing", hotplug::hold_nothing),
    ("sleep_and_wake", sleep::sleep_and_wake),
];
