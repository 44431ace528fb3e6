//! The workspace's unit tests, built by cargo and run by libtest.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::record::{Outcome, Record};
use crate::host::{cargo, interrupt, process, process::Process, progress};

/// Prefix of the names of unit tests.
const PREFIX: &str = "unit";

/// One unit test.
#[derive(Clone, Debug)]
pub(crate) struct UnitTest {
    /// Its name in this run.
    pub(crate) name: String,
    /// Its name in its program.
    inner: String,
    program: PathBuf,
    directory: PathBuf,
}

/// Builds the workspace's tests and lists them.
pub(crate) fn list(workspace: &Path) -> Result<Vec<UnitTest>> {
    let mut command = cargo::cargo(workspace);
    command.args(["test", "--workspace", "--no-run"]);
    let mut tests = Vec::new();
    for built in cargo::build(&mut command, "building the unit tests")? {
        if !built.is_test {
            continue;
        }
        let program = built.executable;
        let directory = built.manifest.parent().unwrap_or(workspace).to_owned();
        let listing = process::output(
            Command::new(&program)
                .current_dir(&directory)
                .args(["--list", "--format", "terse"]),
            "listing unit tests",
        )?;
        tests.extend(names_in(&listing).map(|inner| UnitTest {
            name: format!("{PREFIX}::{}::{inner}", built.name.replace('-', "_")),
            inner: inner.to_owned(),
            program: program.clone(),
            directory: directory.clone(),
        }));
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// Runs `tests`, those of one program together, and passes each result to `record`.
pub(crate) fn run(tests: &[UnitTest], mut record: impl FnMut(Record)) -> Result<()> {
    let mut programs: BTreeMap<&Path, Vec<&UnitTest>> = BTreeMap::new();
    for test in tests {
        programs.entry(&test.program).or_default().push(test);
    }
    let mut groups: Vec<(&Path, Vec<&UnitTest>)> = programs.into_iter().collect();
    groups.sort_by(|a, b| a.1[0].name.cmp(&b.1[0].name));
    for (program, tests) in groups {
        let _step = progress::step(format!("running unit tests of {}", crate_of(tests[0])));
        let mut output = tempfile::tempfile().context("cannot create a temporary file")?;
        let status = Process::spawn(
            Command::new(program)
                .current_dir(&tests[0].directory)
                .env("CARGO_MANIFEST_DIR", &tests[0].directory)
                .arg("--exact")
                .args(tests.iter().map(|test| test.inner.as_str()))
                .stdin(Stdio::null())
                .stdout(output.try_clone().context("cannot duplicate a file")?)
                .stderr(output.try_clone().context("cannot duplicate a file")?),
        )?
        .wait()?;
        interrupt::check()?;
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut output).context("cannot rewind a file")?;
        std::io::Read::read_to_end(&mut output, &mut text).context("cannot read a file")?;
        let text = String::from_utf8_lossy(&text);
        for test in tests {
            record(Record {
                name: test.name.clone(),
                outcome: outcome_of(&text, &test.inner, &process::describe(status)),
                time: None,
                output: output_of(&text, &test.inner),
            });
        }
    }
    Ok(())
}

fn crate_of(test: &UnitTest) -> &str {
    test.name.split("::").nth(1).unwrap_or_default()
}

/// Names in libtest's terse list (`NAME: test`).
fn names_in(listing: &str) -> impl Iterator<Item = &str> {
    listing
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
}

/// Finds the outcome of one test in libtest's output. A test that is missing there has ended the
/// program.
fn outcome_of(output: &str, name: &str, status: &str) -> Outcome {
    let start = format!("test {name} ");
    for line in output.lines() {
        let Some(rest) = line.strip_prefix(start.as_str()) else {
            continue;
        };
        // `... ok`, or `- should panic ... ok`.
        match rest.rsplit_once("... ").map(|(_, result)| result.trim()) {
            Some("ok") => return Outcome::Passed,
            Some(result) if result.starts_with("ignored") => {
                let reason = result
                    .trim_start_matches("ignored")
                    .trim_start_matches(", ");
                return Outcome::Skipped(if reason.is_empty() {
                    "marked #[ignore] without a reason".to_owned()
                } else {
                    reason.to_owned()
                });
            }
            Some("FAILED") => return Outcome::Failed("the unit test failed".to_owned()),
            _ => {}
        }
    }
    Outcome::Failed(format!(
        "the test program ended before this test did ({status})"
    ))
}

/// The part of libtest's output that belongs to one failed test.
fn output_of(output: &str, name: &str) -> String {
    let start = format!("---- {name} stdout ----");
    output
        .lines()
        .skip_while(|line| *line != start)
        .skip(1)
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\nrunning 4 tests\ntest a::good ... ok\n\
        test a::panics - should panic ... ok\ntest a::bad ... FAILED\n\
        test a::slow ... ignored, needs an hour\n\nfailures:\n\n---- a::bad stdout ----\n\
        thread panicked\nsaid so\n\nfailures:\n    a::bad\n";

    #[test]
    fn outcomes_are_read_from_libtest_output() {
        let outcome = |name: &str| outcome_of(OUTPUT, name, "exit status 101");
        assert_eq!(outcome("a::good"), Outcome::Passed);
        assert_eq!(outcome("a::panics"), Outcome::Passed);
        assert!(matches!(outcome("a::bad"), Outcome::Failed(_)));
        assert_eq!(
            outcome("a::slow"),
            Outcome::Skipped("needs an hour".to_owned())
        );
        assert!(matches!(outcome("a::goo"), Outcome::Failed(_)));
        assert_eq!(output_of(OUTPUT, "a::bad"), "thread panicked\nsaid so\n\n");
    }

    #[test]
    fn lists_tests_but_not_benchmarks() {
        let listing = "a::good: test\nb::fast: benchmark\n";
        assert_eq!(names_in(listing).collect::<Vec<_>>(), ["a::good"]);
    }
}
