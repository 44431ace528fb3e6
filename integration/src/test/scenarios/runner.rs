//! The list of scenarios, and running them.

use std::time::Instant;

use anyhow::Result;

use super::{context::Context, registry::Registered};
use crate::{
    host::interrupt,
    test::record::{Outcome, Record},
    testbed::boot::Testbed,
};

/// A scenario.
pub(crate) struct Scenario {
    /// `MODULE::NAME`.
    pub(crate) name: String,
    run: fn(&Context<'_>) -> Result<()>,
}

/// Returns all scenarios, by module and in the order of definition.
pub(crate) fn all() -> Vec<Scenario> {
    let mut registered: Vec<&Registered> = inventory::iter::<Registered>.into_iter().collect();
    registered.sort_by_key(|scenario| (scenario.module, scenario.line));
    registered
        .into_iter()
        .map(|scenario| Scenario {
            name: format!("{}::{}", suite_of(scenario.module), scenario.name),
            run: scenario.run,
        })
        .collect()
}

/// The last part of a module's path.
fn suite_of(module: &str) -> &str {
    module.rsplit("::").next().unwrap_or(module)
}

/// Runs `scenarios` and passes each result to `record`.
pub(crate) fn run(
    testbed: &Testbed,
    kernel: &str,
    scenarios: &[Scenario],
    mut record: impl FnMut(Record),
) -> Result<()> {
    let context = Context::new(testbed, kernel);
    for scenario in scenarios {
        let started = Instant::now();
        let result = (scenario.run)(&context);
        interrupt::check()?;
        record(Record {
            name: scenario.name.clone(),
            outcome: match result {
                Ok(()) => Outcome::Passed,
                Err(error) => Outcome::Failed(format!("{error:#}")),
            },
            time: Some(started.elapsed()),
            output: String::new(),
        });
    }
    Ok(())
}
