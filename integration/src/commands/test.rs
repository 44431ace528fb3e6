//! `cargo vm test`: the workspace's unit tests, every suite in guests, and the scenarios.

use std::io::Write as _;

use anyhow::Result;
use guest_agent::ListedTest;

use crate::{
    cli::{Test, TestKind},
    failure::RunFailure,
    host::{cache::Cache, cargo, interrupt, progress, requirements},
    image::programs,
    test::{
        guests, junit,
        record::Record,
        report::Report,
        scenarios::{self, runner::Scenario},
        select::Selection,
        units,
        units::UnitTest,
    },
    testbed::{boot::Testbed, provide::Wanted},
};

/// Any test.
enum AnyTest {
    Unit(UnitTest),
    Guest(ListedTest),
    Scenario(Scenario),
}

impl AnyTest {
    fn name(&self) -> &str {
        match self {
            Self::Unit(test) => &test.name,
            Self::Guest(test) => &test.name,
            Self::Scenario(scenario) => &scenario.name,
        }
    }
}

/// Runs or lists the tests and returns the exit status.
pub(crate) fn run(arguments: &Test) -> Result<u8> {
    let cache = Cache::open()?;
    let selection = Selection {
        filter: arguments.filter.clone(),
        partition: arguments.partition,
    };
    let chosen = selection.select(all(&arguments.only)?, AnyTest::name);
    if arguments.list {
        for test in &chosen {
            // A closed pipe is not a failure.
            let _ = writeln!(std::io::stdout(), "{}", test.name());
        }
        return Ok(0);
    }
    if chosen.is_empty() {
        return Err(RunFailure::Usage(format!(
            "no test matches {:?}; `cargo vm test --list` shows all",
            arguments.filter.as_deref().unwrap_or_default()
        ))
        .into());
    }
    let mut units = Vec::new();
    let mut in_guests = Vec::new();
    let mut scenarios = Vec::new();
    for test in chosen {
        match test {
            AnyTest::Unit(test) => units.push(test),
            AnyTest::Guest(test) => in_guests.push(test),
            AnyTest::Scenario(scenario) => scenarios.push(scenario),
        }
    }
    let mut report = Report::new();
    let result = run_chosen(
        &cache,
        arguments,
        &units,
        &in_guests,
        &scenarios,
        &mut report,
    );
    if let Some(path) = &arguments.junit {
        junit::write(path, report.records(), report.elapsed())?;
    }
    let passed = report.finish();
    result?;
    Ok(u8::from(!passed))
}

/// Returns the tests of these kinds, or all tests.
fn all(kinds: &[TestKind]) -> Result<Vec<AnyTest>> {
    let selected = |kind| kinds.is_empty() || kinds.contains(&kind);
    let workspace = cargo::workspace()?;
    requirements::provide_packages()?;
    let mut tests = Vec::new();
    if selected(TestKind::Units) {
        tests.extend(units::list(&workspace)?.into_iter().map(AnyTest::Unit));
    }
    if selected(TestKind::Suites) {
        let listed = guests::list(&programs::for_guests(&workspace)?.suites)?;
        tests.extend(listed.into_iter().map(AnyTest::Guest));
    }
    if selected(TestKind::Scenarios) {
        tests.extend(scenarios::runner::all().into_iter().map(AnyTest::Scenario));
    }
    Ok(tests)
}

fn run_chosen(
    cache: &Cache,
    arguments: &Test,
    units: &[UnitTest],
    in_guests: &[ListedTest],
    scenarios: &[Scenario],
    report: &mut Report,
) -> Result<()> {
    let mut record = |record: Record| report.add(record);
    units::run(units, &mut record)?;
    if in_guests.is_empty() && scenarios.is_empty() {
        return Ok(());
    }
    let mut package_sets = guests::package_sets(in_guests);
    if !scenarios.is_empty() && !package_sets.contains(&Vec::new()) {
        package_sets.push(Vec::new());
    }
    let testbed = Testbed::provide(
        cache,
        &Wanted {
            mirror: arguments.environment.mirror.clone(),
            refresh: arguments.environment.refresh,
            kernel: arguments.environment.kernel.clone(),
            package_sets,
            accel: arguments.environment.accel,
            driver: true,
            counting_plugin: false,
        },
    )?;
    progress::say(&format!(
        "vdma: kernel {}, {}",
        testbed.kernel.release,
        testbed.accel.name()
    ));
    guests::run(&testbed, in_guests, arguments.verbose, &mut record)?;
    scenarios::runner::run(
        &testbed,
        &arguments.environment.kernel,
        scenarios,
        &mut record,
    )?;
    interrupt::check()?;
    Ok(())
}
