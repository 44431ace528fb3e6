//! A test run as a JUnit file.

use std::{collections::BTreeMap, fs::File, path::Path, time::Duration};

use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::record::{Outcome, Record};

/// Writes `records` to `path`; the part of a name before its last `::` becomes its suite.
pub(crate) fn write(path: &Path, records: &[Record], time: Duration) -> Result<()> {
    let mut suites: BTreeMap<&str, TestSuite> = BTreeMap::new();
    for record in records {
        let (suite, name) = record.name.rsplit_once("::").unwrap_or(("", &record.name));
        suites
            .entry(suite)
            .or_insert_with(|| TestSuite::new(suite))
            .add_test_case(case(suite, name, record));
    }
    let mut report = Report::new("cargo vm test");
    report.set_time(time);
    report.add_test_suites(suites.into_values());
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    report
        .serialize(file)
        .with_context(|| format!("cannot write {}", path.display()))
}

fn case(suite: &str, name: &str, record: &Record) -> TestCase {
    let status = match &record.outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Failed(reason) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(reason.lines().next().unwrap_or_default());
            status.set_description(reason);
            status
        }
        Outcome::Skipped(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason);
            status
        }
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(suite);
    if let Some(time) = record.time {
        case.set_time(time);
    }
    if !record.output.is_empty() {
        case.set_system_out(&record.output);
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("junit.xml");
        let record = |name: &str, outcome: Outcome| Record {
            name: name.to_owned(),
            outcome,
            time: None,
            output: "<&\u{0}>".to_owned(),
        };
        let records = [
            record("a::b::c", Outcome::Passed),
            record("a::b::d", Outcome::Failed("why\nmore".to_owned())),
            record("e", Outcome::Skipped("not here".to_owned())),
        ];
        write(&path, &records, Duration::from_secs(1)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#"tests="3""#), "{text}");
        assert!(text.contains(r#"failures="1""#), "{text}");
        assert!(text.contains(r#"<skipped message="not here""#), "{text}");
    }
}
