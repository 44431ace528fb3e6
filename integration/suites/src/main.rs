//! Tests that run inside a guest. `cargo vm test` calls this program there, once for each test.
//!
//! `list` prints the tests as JSON; `run NAME` runs one in a child process and then checks that it
//! left nothing behind. `act NAME` plays the guest's part in a scenario; `read` is measured. Exit status:
//! 0 passed, 1 failed, 77 skipped (the last line says why).

mod actors;
mod reader;
mod suites;
mod support;
mod test;
mod watch;

use std::{
    io::Write as _,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::{
    test::{Needs, Skip, Test},
    watch::Holdings,
};

/// Exit status of a skipped test.
const SKIPPED: u8 = 77;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments.as_slice() {
        ["list"] => list(),
        ["run", name] => run(name),
        ["inner", name] => inner(name),
        ["act", name] => act(name),
        ["read", kind, node, count] => reader::main(kind, node, count).map(|()| ExitCode::SUCCESS),
        _ => {
            eprintln!("usage: guest-suites list | run NAME | act NAME | read KIND NODE COUNT");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Serialize)]
struct Listed {
    name: String,
    needs: Needs,
}

fn list() -> Result<ExitCode> {
    let all: Vec<Listed> = suites::SUITES
        .iter()
        .flat_map(|(suite, tests)| {
            tests.iter().map(move |test| Listed {
                name: format!("{suite}::{}", test.name),
                needs: test.needs,
            })
        })
        .collect();
    let text = serde_json::to_string_pretty(&all).context("cannot encode the list")?;
    writeln!(std::io::stdout(), "{text}").context("cannot print the list")?;
    Ok(ExitCode::SUCCESS)
}

fn run(name: &str) -> Result<ExitCode> {
    find(name)?;
    let before = Holdings::now()?;
    let status = Command::new("/proc/self/exe")
        .args(["inner", name])
        .status()
        .context("cannot start the test")?;
    match status.code() {
        Some(0) => {
            before.wait_until_restored()?;
            Ok(ExitCode::SUCCESS)
        }
        Some(code) if code == i32::from(SKIPPED) => Ok(ExitCode::from(SKIPPED)),
        Some(_) => Ok(ExitCode::FAILURE),
        None => bail!("the test was killed: {status}"),
    }
}

fn inner(name: &str) -> Result<ExitCode> {
    match (find(name)?.run)() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(reason) => {
                println!("{reason}");
                Ok(ExitCode::from(SKIPPED))
            }
            None => Err(error),
        },
    }
}

fn act(name: &str) -> Result<ExitCode> {
    let (_, actor) = actors::ACTORS
        .iter()
        .find(|(candidate, _)| *candidate == name)
        .with_context(|| format!("there is no actor {name}"))?;
    actor().map(|()| ExitCode::SUCCESS)
}

fn find(name: &str) -> Result<&'static Test> {
    let (suite, test) = name.split_once("::").unwrap_or((name, ""));
    suites::SUITES
        .iter()
        .filter(|(candidate, _)| *candidate == suite)
        .flat_map(|(_, tests)| *tests)
        .find(|candidate| candidate.name == test)
        .with_context(|| format!("there is no test {name}; `guest-suites list` shows all"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let mut seen = HashSet::new();
        for (suite, tests) in suites::SUITES {
            for test in *tests {
                let name = format!("{suite}::{}", test.name);
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                assert!(
                    suite.chars().all(plain) && test.name.chars().all(plain),
                    "{name}"
                );
                assert!(find(&name).is_ok());
                assert!(seen.insert(name.clone()), "{name} twice");
            }
        }
    }
}
