//! Suites in guests. Tests that need equal guests share one; when a test fails, the guest is
//! discarded and the failure attributed to that test, and the next test gets a new guest.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use guest_agent::{Command, CommandEnd, ListedTest, SKIPPED};

use super::record::{Outcome, Record};
use crate::{
    failure::RunFailure,
    host::{accel::Accel, interrupt, process},
    testbed::{boot::Testbed, guest::GuestSpec},
    vm::{command_io::Collected, running::Vm},
};

/// The guest's program that contains the suites.
const PROGRAM: &str = "guest-suites";

/// Returns the sets of packages that `tests` need in addition to those of every guest.
pub(crate) fn package_sets(tests: &[ListedTest]) -> Vec<Vec<String>> {
    let mut sets: Vec<Vec<String>> = Vec::new();
    for test in tests {
        if !sets.contains(&test.needs.guest.packages) {
            sets.push(test.needs.guest.packages.clone());
        }
    }
    sets
}

/// Lists the tests of `program`, the suites' program, which also runs on the host.
pub(crate) fn list(program: &Path) -> Result<Vec<ListedTest>> {
    let text = process::output(
        std::process::Command::new(program).arg("list"),
        "listing the guest suites",
    )?;
    serde_json::from_str(&text).context("the guest suites' list is malformed")
}

/// Runs `tests` and passes each result to `record`.
pub(crate) fn run(
    testbed: &Testbed,
    tests: &[ListedTest],
    verbose: bool,
    mut record: impl FnMut(Record),
) -> Result<()> {
    let mut groups: Vec<Vec<&ListedTest>> = Vec::new();
    for test in tests {
        match groups
            .iter_mut()
            .find(|group| group[0].needs.guest == test.needs.guest)
        {
            Some(group) => group.push(test),
            None => groups.push(vec![test]),
        }
    }
    for (number, group) in groups.iter().enumerate() {
        run_group(testbed, number, group, verbose, &mut record)?;
    }
    Ok(())
}

fn run_group(
    testbed: &Testbed,
    number: usize,
    tests: &[&ListedTest],
    verbose: bool,
    record: &mut impl FnMut(Record),
) -> Result<()> {
    let mut running: Option<Vm> = None;
    let mut boots = 0;
    let mut no_boot: Option<String> = None;
    for test in tests {
        if test.needs.kvm && testbed.accel != Accel::Kvm {
            record(skipped(test, "needs KVM"));
            continue;
        }
        let mut vm = match running.take() {
            Some(vm) => vm,
            None => {
                if let Some(reason) = &no_boot {
                    record(failed(
                        test,
                        format!("no guest for this test: {reason}"),
                        Vec::new(),
                    ));
                    continue;
                }
                boots += 1;
                let spec = GuestSpec {
                    name: format!("suites-{number}-{boots}"),
                    config: test.needs.guest.clone(),
                    verbose,
                    ..GuestSpec::default()
                };
                match testbed.boot(&spec) {
                    Ok(vm) => vm,
                    Err(error) => {
                        interrupt::check()?;
                        record(failed(test, format!("{error:#}"), Vec::new()));
                        no_boot = Some(error.to_string().lines().next().unwrap_or("").to_owned());
                        continue;
                    }
                }
            }
        };
        let limit = Duration::from_secs(test.needs.timeout) * testbed.timeout_factor;
        let (result, survives) = run_one(&mut vm, test, limit)?;
        record(result);
        if survives {
            running = Some(vm);
        }
    }
    match running {
        Some(vm) => find_leaks(vm, number, record),
        None => Ok(()),
    }
}

/// Scans for leaks of all tests that ran in this guest.
fn find_leaks(mut vm: Vm, number: usize, record: &mut impl FnMut(Record)) -> Result<()> {
    let outcome = match vm.leaks() {
        Ok(None) => return Ok(()),
        Ok(Some(splat)) => format!("the kernel found leaks:\n{}", splat.lines.join("\n")),
        Err(error) => {
            interrupt::check()?;
            format!("{error:#}")
        }
    };
    record(Record {
        name: format!("leaks::guest_{number}"),
        outcome: Outcome::Failed(outcome),
        time: None,
        output: String::new(),
    });
    Ok(())
}

/// Runs one test; also returns whether the guest can run another.
fn run_one(vm: &mut Vm, test: &ListedTest, limit: Duration) -> Result<(Record, bool)> {
    let started = Instant::now();
    let mut output = Collected::default();
    let command = Command {
        arguments: vec![PROGRAM.to_owned(), "run".to_owned(), test.name.clone()],
        environment: vec![("RUST_BACKTRACE".to_owned(), "1".to_owned())],
        terminal: None,
    };
    let result = vm
        .mark(&format!("begin {}", test.name))
        .and_then(|()| vm.run(command, Some(limit), &mut output))
        .and_then(|end| vm.sync_kernel_log().map(|()| end));
    let mut survives = true;
    let mut outcome = match result {
        Ok(CommandEnd::Exited(0)) => Outcome::Passed,
        Ok(CommandEnd::Exited(status)) if status == i32::from(SKIPPED) => {
            Outcome::Skipped(output.last_line().unwrap_or("without a reason").to_owned())
        }
        Ok(end) => Outcome::Failed(describe(&end)),
        Err(error) => {
            interrupt::check()?;
            survives = false;
            if error.downcast_ref::<RunFailure>().is_none() {
                return Err(error);
            }
            Outcome::Failed(format!("{error:#}"))
        }
    };
    let splats = vm.take_splats();
    if !splats.is_empty() {
        // After a complaint the kernel may be in any state.
        survives = false;
        let mut text = format!("the kernel complained {} time(s):", splats.len());
        for line in splats.iter().flat_map(|splat| &splat.lines) {
            text.push_str("\n    ");
            text.push_str(line);
        }
        outcome = match outcome {
            Outcome::Failed(reason) => Outcome::Failed(format!("{reason}\n{text}")),
            Outcome::Passed | Outcome::Skipped(_) => Outcome::Failed(text),
        };
    }
    if matches!(outcome, Outcome::Failed(_)) {
        // A failed test may leave anything behind, which must not affect the next one.
        survives = false;
    }
    let record = Record {
        name: test.name.clone(),
        outcome,
        time: Some(started.elapsed()),
        output: String::from_utf8_lossy(&output.bytes).into_owned(),
    };
    Ok((record, survives))
}

fn describe(end: &CommandEnd) -> String {
    match end {
        CommandEnd::Exited(code) => format!("the test failed (exit status {code})"),
        CommandEnd::Killed(signal) => format!("the test was killed by signal {signal}"),
        CommandEnd::NotStarted { reason, .. } => format!("the test could not be started: {reason}"),
    }
}

fn failed(test: &ListedTest, reason: String, output: Vec<u8>) -> Record {
    Record {
        name: test.name.clone(),
        outcome: Outcome::Failed(reason),
        time: None,
        output: String::from_utf8_lossy(&output).into_owned(),
    }
}

fn skipped(test: &ListedTest, reason: &str) -> Record {
    Record {
        name: test.name.clone(),
        outcome: Outcome::Skipped(reason.to_owned()),
        time: None,
        output: String::new(),
    }
}
