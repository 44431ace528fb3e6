//! Registration of scenarios where they are defined.

use anyhow::Result;

use super::context::Context;

/// A scenario as [`scenario!`] registers it.
pub(super) struct Registered {
    pub(super) module: &'static str,
    pub(super) name: &'static str,
    pub(super) line: u32,
    pub(super) run: fn(&Context<'_>) -> Result<()>,
}

inventory::collect!(Registered);

/// Registers the function of this name, which follows, as a scenario of its module.
///
/// A function that is not registered is dead code, which the compiler reports.
macro_rules! scenario {
    ($name:ident) => {
        inventory::submit! {
            crate::test::scenarios::registry::Registered {
                module: module_path!(),
                name: stringify!($name),
                line: line!(),
                run: $name,
            }
        }
    };
}
pub(super) use scenario;
