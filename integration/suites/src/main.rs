//! Tests that run inside a guest. `cargo vm test` calls this program there, once for each test.
//!
//! `list` prints the tests as JSON; `run NAME` runs one in a child process and then checks that it
//! left nothing behind. `act NAME` plays the guest's part in a scenario; `read` is the load of a
//! measurement. Exit status: 0 passed, 1 failed, 77 skipped (the last line says why).

// A test that lacks `#[guest_test]` is dead code, and must not go unnoticed.
#![deny(dead_code)]

mod actors;
mod leftovers;
mod list;
mod reader;
mod suites;
mod support;
mod test;

use std::{
    io::Write as _,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use guest_agent::{ListedTest, SKIPPED};

use crate::{leftovers::Holdings, test::Skip};

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

fn list() -> Result<ExitCode> {
    let all: Vec<ListedTest> = list::all()?
        .into_iter()
        .map(|test| ListedTest {
            name: test.name(),
            needs: (test.needs)(),
        })
        .collect();
    let text = serde_json::to_string_pretty(&all).context("cannot encode the list")?;
    writeln!(std::io::stdout(), "{text}").context("cannot print the list")?;
    Ok(ExitCode::SUCCESS)
}

fn run(name: &str) -> Result<ExitCode> {
    list::find(name)?;
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
    match (list::find(name)?.run)() {
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
