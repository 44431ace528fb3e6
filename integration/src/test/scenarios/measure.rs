//! `cargo vm bench`: its reports contain what was measured. No test depends on how fast that was.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    context::Context,
    harness::{expect_message, expect_status, run},
    registry::scenario,
};
use crate::failure::USAGE;

/// The comparisons of the report `name` in `directory`.
fn comparisons(directory: &Path, name: &str) -> Result<Vec<Value>> {
    let path = directory.join(name);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let report: Value = serde_json::from_slice(&text).context("the report is malformed")?;
    let comparisons = report["comparisons"].as_array().cloned();
    comparisons.with_context(|| format!("no comparisons in {report}"))
}

scenario!(times_are_written_as_text_json_and_svg);
fn times_are_written_as_text_json_and_svg(context: &Context<'_>) -> Result<()> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let output = run(context
        .cargo_vm("bench")
        .args(["--rounds", "1", "--seconds", "1", "--output"])
        .arg(directory.path()))?;
    expect_status(&output, 0)?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let comparisons = comparisons(directory.path(), "bench.json")?;
    ensure!(comparisons.len() > 5, "{} comparisons", comparisons.len());
    for comparison in comparisons {
        let job = comparison["job"].as_str().context("a job without a name")?;
        ensure!(table.contains(job), "no {job:?} in:\n{table}");
        let result = &comparison["device"][0];
        ensure!(result.as_f64() > Some(0.0), "{job}: {result}");
        let peer = &comparison["peers"][0]["results"][0];
        ensure!(peer.as_f64() > Some(0.0), "{job}: {peer} of the peer");
    }
    let svg = fs::read_to_string(directory.path().join("bench.svg")).context("no SVG")?;
    ensure!(svg.contains("<svg") && svg.contains("psync"), "{svg}");
    Ok(())
}

scenario!(instructions_are_attributed_to_their_functions);
fn instructions_are_attributed_to_their_functions(context: &Context<'_>) -> Result<()> {
    let directory = tempfile::tempdir().context("cannot make a directory")?;
    let output = run(Command::new(&context.program)
        .args(["bench", "--instructions", "--rounds", "1"])
        .args(["--kernel", context.kernel, "--output"])
        .arg(directory.path()))?;
    expect_status(&output, 0)?;
    for comparison in comparisons(directory.path(), "instructions.json")? {
        let job = &comparison["job"];
        let of = |device: &str, part: &str| {
            let number = comparison[device][part].as_f64();
            number.with_context(|| format!("{job}: no {part} of {device}"))
        };
        for device in ["device", "peer"] {
            let kernel = of(device, "kernel")?;
            ensure!(kernel > 1000.0, "{job}, {device}: {kernel} in the kernel");
        }
        let (module, all) = (of("device", "module")?, of("device", "total")?);
        ensure!(
            module > 100.0 && module < all,
            "{job}: {module} of {all} instructions are the module's"
        );
        let none = of("peer", "module")?;
        ensure!(
            none.abs() < 100.0,
            "{job}: the module has {none} of the peer's"
        );
        let functions = comparison["device"]["functions"].as_array();
        let reap = |function: &Value| {
            let name = function["name"].as_str().unwrap_or_default();
            name.contains("reap") && name.ends_with("[vdma]")
        };
        // Compared to pinning 256 pages, one completion may be too cheap to be listed.
        let small = job.as_str().is_some_and(|job| job.starts_with("4 KiB"));
        ensure!(
            !small || functions.is_some_and(|functions| functions.iter().any(reap)),
            "{job}: nothing of the interrupt handler in {functions:?}"
        );
    }
    Ok(())
}

scenario!(instructions_cannot_be_counted_with_kvm);
fn instructions_cannot_be_counted_with_kvm(context: &Context<'_>) -> Result<()> {
    let output =
        run(Command::new(&context.program).args(["bench", "--instructions", "--accel", "kvm"]))?;
    expect_status(&output, USAGE)?;
    expect_message(&output, "--instructions works with TCG only")
}
