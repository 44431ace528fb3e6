//! The report of a test run: a line for each test, and the output of failed tests at the end.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use super::record::{Outcome, Record};

/// Collects records and prints them.
pub(crate) struct Report {
    records: Vec<Record>,
    started: Instant,
}

impl Report {
    /// A report without records.
    pub(crate) fn new() -> Self {
        Self {
            records: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Prints and keeps a record.
    pub(crate) fn add(&mut self, record: Record) {
        print(&line(&record));
        self.records.push(record);
    }

    /// The records so far.
    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// Duration of the run up to now.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints the failures and the totals; returns true if nothing failed.
    pub(crate) fn finish(&self) -> bool {
        for record in &self.records {
            if let Outcome::Failed(reason) = &record.outcome {
                print(&format!("\n---- {} ----", record.name));
                if !record.output.trim().is_empty() {
                    print(record.output.trim_end());
                }
                print(reason);
            }
        }
        let [passed, failed, skipped] = totals(&self.records);
        print(&format!(
            "\n{passed} passed, {failed} failed, {skipped} skipped"
        ));
        failed == 0
    }
}

fn line(record: &Record) -> String {
    let result = match &record.outcome {
        Outcome::Passed => "ok".to_owned(),
        Outcome::Failed(_) => "FAILED".to_owned(),
        Outcome::Skipped(reason) => format!("skipped: {reason}"),
    };
    match record.time {
        Some(time) => format!(
            "test {} ... {result} ({:.2} s)",
            record.name,
            time.as_secs_f64()
        ),
        None => format!("test {} ... {result}", record.name),
    }
}

fn totals(records: &[Record]) -> [usize; 3] {
    let count = |wanted: fn(&Outcome) -> bool| {
        records
            .iter()
            .filter(|record| wanted(&record.outcome))
            .count()
    };
    [
        count(|outcome| *outcome == Outcome::Passed),
        count(|outcome| matches!(outcome, Outcome::Failed(_))),
        count(|outcome| matches!(outcome, Outcome::Skipped(_))),
    ]
}

fn print(text: &str) {
    // A closed pipe (`| head`) is not a failure of the tests.
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(outcome: Outcome) -> Record {
        Record {
            name: "a::b".to_owned(),
            outcome,
            time: Some(Duration::from_millis(1234)),
            output: String::new(),
        }
    }

    #[test]
    fn lines_have_name_result_and_time() {
        assert_eq!(line(&record(Outcome::Passed)), "test a::b ... ok (1.23 s)");
        assert_eq!(
            line(&record(Outcome::Skipped("needs KVM".to_owned()))),
            "test a::b ... skipped: needs KVM (1.23 s)"
        );
    }

    #[test]
    fn each_outcome_is_counted_once() {
        let records = [
            record(Outcome::Passed),
            record(Outcome::Failed("x".to_owned())),
            record(Outcome::Skipped("y".to_owned())),
            record(Outcome::Passed),
        ];
        assert_eq!(totals(&records), [2, 1, 1]);
    }
}
