//! Programs of the guest.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Runs a program that has to succeed; returns its standard output.
pub(crate) fn run(arguments: &[&str]) -> Result<String> {
    let (program, rest) = arguments.split_first().context("no program is named")?;
    let output = Command::new(program)
        .args(rest)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            arguments.join(" "),
            output.status,
            text,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(text)
}
