//! The command-line tool `vdma`.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use serde_json::Value;

use super::{INPUT, OUTPUT};
use crate::support::{MIB, NODE, bytes, open, program};

fn json(arguments: &[&str]) -> Result<Value> {
    let text = program::run(arguments)?;
    serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text}"))
}

#[guest_test]
fn vdma_list() -> Result<()> {
    let text = program::run(&["vdma", "list"])?;
    let line = text.lines().find(|line| line.starts_with(NODE));
    let line = line.with_context(|| format!("no {NODE} in {text}"))?;
    ensure!(line.contains("64 MiB"), "{line}");
    let value = json(&["vdma", "list", "-o", "json"])?;
    let devices = value["devices"].as_array().context("no devices")?;
    ensure!(devices.len() == 1 && devices[0]["node"] == NODE, "{value}");
    let pci = devices[0]["pci"].as_str().context("no PCI function")?;
    let vendor = fs::read_to_string(format!("/sys/bus/pci/devices/{pci}/vendor"))?;
    ensure!(vendor.trim() == "0x1af4", "{pci} is of vendor {vendor}");
    Ok(())
}

#[guest_test]
fn vdma_info_is_text_and_json() -> Result<()> {
    let before = json(&["vdma", "info", NODE, "-o", "json"])?;
    let info = *open()?.info();
    ensure!(before["memory_size"] == info.memory_size, "{before}");
    ensure!(before["bar_address"] == info.bar_address, "{before}");
    ensure!(before["queue_size"] == info.queue_size, "{before}");
    let operations = before["operations"].as_array().context("no operations")?;
    ensure!(operations.iter().any(|name| name == "read"), "{before}");
    open()?.file().write_all_at(&[0; 4321], 0)?;
    let after = json(&["vdma", "info", "-o", "json"])?;
    let written = |value: &Value| value["statistics"]["bytes_written"].as_u64().unwrap_or(0);
    ensure!(
        written(&after) == written(&before) + 4321,
        "{before} {after}"
    );
    let text = program::run(&["vdma", "info"])?;
    ensure!(text.contains("64 MiB"), "{text}");
    Ok(())
}

#[guest_test]
fn vdma_writes_and_reads() -> Result<()> {
    let data = bytes::random(4, 9 * MIB + 1);
    fs::write(INPUT, &data)?;
    program::run(&["vdma", "write", NODE, "--offset", "1M", "--input", INPUT])?;
    let length = data.len().to_string();
    program::run(&[
        "vdma", "read", NODE, "--offset", "1M", "--length", &length, "--output", OUTPUT,
    ])?;
    bytes::expect(&fs::read(OUTPUT)?, &data, "through files")?;

    let mut child = Command::new("vdma")
        .args(["write", "--offset", "0x3"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run vdma")?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(&data[..5000])?;
    ensure!(child.wait()?.success(), "vdma write from a pipe failed");
    let output = Command::new("vdma")
        .args(["read", "--offset", "3", "--length", "5000"])
        .output()
        .context("cannot run vdma")?;
    ensure!(output.status.success(), "vdma read to a pipe failed");
    bytes::expect(&output.stdout, &data[..5000], "through pipes")
}

#[guest_test]
fn vdma_errors_are_one_line() -> Result<()> {
    for (arguments, part) in [
        (&["info", "/dev/vdma7"][..], "/dev/vdma7"),
        (&["info", "/dev/null"][..], "not a vdma device"),
        (
            &["read", NODE, "--offset", "1G", "--length", "1"][..],
            "leaves device memory",
        ),
        (
            &["write", NODE, "--offset", "64M", "--input", "/proc/version"][..],
            "does not fit",
        ),
        (
            &["write", NODE, "--input", "/does/not/exist"][..],
            "/does/not/exist",
        ),
    ] {
        let output = Command::new("vdma")
            .args(arguments)
            .output()
            .context("cannot run vdma")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{arguments:?} succeeded");
        ensure!(output.stdout.is_empty(), "{arguments:?} printed something");
        ensure!(
            text.lines().count() == 1,
            "{arguments:?}: not one line: {text}"
        );
        ensure!(text.contains(part), "{arguments:?}: {text}");
    }
    Ok(())
}
