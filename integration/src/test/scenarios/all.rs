//! All scenarios, and running them.

use std::time::Instant;

use anyhow::Result;

use super::{
    context::{Context, Scenario},
    harness, hotplug, measure, outage, sleep,
};
use crate::{
    host::interrupt,
    test::record::{Outcome, Record},
    testbed::boot::Testbed,
};

/// All scenarios.
pub(crate) fn all() -> Vec<&'static Scenario> {
    [
        harness::SCENARIOS,
        outage::SCENARIOS,
        hotplug::SCENARIOS,
        sleep::SCENARIOS,
        measure::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs `scenarios` and passes each result to `record`.
pub(crate) fn run(
    testbed: &Testbed,
    kernel: &str,
    scenarios: &[&'static Scenario],
    mut record: impl FnMut(Record),
) -> Result<()> {
    let context = Context::new(testbed, kernel)?;
    for scenario in scenarios {
        let started = Instant::now();
        let result = (scenario.run)(&context);
        interrupt::check()?;
        record(Record {
            name: scenario.name.to_owned(),
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
