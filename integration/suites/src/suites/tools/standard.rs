//! Standard programs, which know nothing of vdma.

use std::{fs, os::unix::fs::FileExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;

use super::{INPUT, OUTPUT};
use crate::support::{MIB, NODE, PAGE, bytes, open, program};

#[guest_test]
fn dd_writes_and_reads() -> Result<()> {
    let data = bytes::random(1, 5 * MIB);
    fs::write(INPUT, &data)?;
    program::run(&[
        "dd",
        "if=/tmp/tools-input",
        "of=/dev/vdma0",
        "bs=1M",
        "seek=3",
        "conv=fsync",
    ])?;
    program::run(&[
        "dd",
        "if=/dev/vdma0",
        "of=/tmp/tools-output",
        "bs=256k",
        "skip=12",
        "count=20",
    ])?;
    bytes::expect(&fs::read(OUTPUT)?, &data, "what dd read back")
}

#[guest_test]
fn dd_with_direct_and_odd_blocks() -> Result<()> {
    let data = bytes::random(2, 777 * 100);
    fs::write(INPUT, &data)?;
    let of = format!("of={NODE}");
    program::run(&[
        "dd",
        "if=/tmp/tools-input",
        &of,
        "bs=777",
        "oflag=direct",
        "seek=3",
    ])?;
    let from = format!("if={NODE}");
    program::run(&[
        "dd",
        &from,
        "of=/tmp/tools-output",
        "bs=777",
        "skip=3",
        "count=100",
        "iflag=direct",
    ])?;
    bytes::expect(&fs::read(OUTPUT)?, &data, "what dd read back")
}

#[guest_test]
fn dd_stops_at_the_end() -> Result<()> {
    let output = Command::new("dd")
        .args([
            "if=/dev/zero",
            "of=/dev/vdma0",
            "bs=1M",
            "seek=62",
            "count=4",
        ])
        .output()
        .context("cannot run dd")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "dd wrote beyond the end");
    ensure!(text.contains("No space left on device"), "{text}");
    ensure!(text.contains("2097152 bytes"), "{text}");
    let from = format!("if={NODE}");
    program::run(&["dd", &from, "of=/tmp/tools-output", "bs=1M", "skip=63"])?;
    ensure!(
        fs::metadata(OUTPUT)?.len() == MIB as u64,
        "not the last MiB"
    );
    Ok(())
}

#[guest_test]
fn cp_and_cmp() -> Result<()> {
    let data = bytes::random(3, 3 * MIB + 17);
    fs::write(INPUT, &data)?;
    program::run(&["cp", INPUT, NODE])?;
    let count = data.len().to_string();
    program::run(&["cmp", "-n", &count, INPUT, NODE])?;
    open()?.file().write_all_at(&[!data[MIB]], MIB as u64)?;
    let output = Command::new("cmp")
        .args(["-n", &count, INPUT, NODE])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "cmp sees no difference");
    ensure!(text.contains("byte 1048577"), "{text}");
    Ok(())
}

#[guest_test]
fn od_and_tail() -> Result<()> {
    let device = open()?;
    device.file().write_all_at(b"hello, device\n", 4090)?;
    let text = program::run(&["od", "-An", "-c", "-j4090", "-N5", NODE])?;
    ensure!(
        text.split_whitespace().eq(["h", "e", "l", "l", "o"]),
        "{text}"
    );
    device
        .file()
        .write_all_at(b"the end\n", device.info().memory_size - 8)?;
    let text = program::run(&["tail", "-c", "8", NODE])?;
    ensure!(text == "the end\n", "{text}");
    Ok(())
}

#[guest_test(packages = crate::suites::fio::PACKAGES)]
fn xxd_dumps_and_patches() -> Result<()> {
    let device = open()?;
    device.file().write_all_at(b"0123456789abcdef", 4090)?;
    let text = program::run(&["xxd", "-s", "4090", "-l", "16", NODE])?;
    ensure!(
        text.starts_with("00000ffa: 3031 3233 3435")
            && text.trim_end().ends_with("0123456789abcdef"),
        "{text}"
    );
    fs::write(INPUT, "00000ffc: 5859\n")?;
    program::run(&["xxd", "-r", INPUT, NODE])?;
    bytes::expect_at(device.file(), 4090, b"01XY456789abcdef", "what xxd patched")?;
    Ok(())
}

#[guest_test]
fn pmap_names_the_device() -> Result<()> {
    let device = open()?;
    let _mapping = device.map(0, 4 * PAGE)?;
    let pid = std::process::id().to_string();
    let text = program::run(&["pmap", &pid])?;
    let line = text.lines().find(|line| line.ends_with("vdma0"));
    let line = line.with_context(|| format!("pmap shows no vdma0: {text}"))?;
    ensure!(line.contains("16K") && line.contains("rw-s"), "{line}");
    Ok(())
}

#[guest_test]
fn lspci_shows_the_function_and_its_bars() -> Result<()> {
    let text = program::run(&["lspci", "-vv", "-d", "1af4:1065"])?;
    ensure!(text.contains("Kernel driver in use: virtio-pci"), "{text}");
    let info = *open()?.info();
    let regions: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("Region "))
        .collect();
    let holds_memory = |line: &&&str| {
        let Some((_, rest)) = line.split_once("Memory at ") else {
            return false;
        };
        let Some((start, _)) = rest.split_once(' ') else {
            return false;
        };
        u64::from_str_radix(start, 16).is_ok_and(|start| {
            let Some(size) = region_size(line) else {
                return false;
            };
            (start..start + size).contains(&info.bar_address)
                && info.bar_address + info.bar_size <= start + size
        })
    };
    let bar = regions.iter().find(holds_memory);
    let bar = bar.with_context(|| {
        format!(
            "no region of {regions:?} holds {:#x} at {:#x}",
            info.bar_size, info.bar_address
        )
    })?;
    ensure!(
        bar.contains("64-bit") && bar.contains("prefetchable"),
        "{bar}"
    );
    ensure!(!bar.contains("non-prefetchable"), "{bar}");
    ensure!(text.contains("VirtIO"), "no virtio capabilities: {text}");
    Ok(())
}

/// The bytes of `... [size=128M]`.
fn region_size(line: &str) -> Option<u64> {
    let size = line.split_once("[size=")?.1.split_once(']')?.0;
    let (digits, shift) = match size.chars().last()? {
        'K' => (&size[..size.len() - 1], 10),
        'M' => (&size[..size.len() - 1], 20),
        'G' => (&size[..size.len() - 1], 30),
        _ => (size, 0),
    };
    Some(digits.parse::<u64>().ok()? << shift)
}
