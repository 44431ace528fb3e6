//! fio as its users run it: every I/O engine, blocks of any size, contents verified.

use std::{
    os::unix::fs::FileExt as _,
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use serde_json::Value;

use crate::support::{NODE, open, wait};

/// Packages of the guests for users' programs; one list, so that tests share the guests.
pub(super) const PACKAGES: &[&str] = &["fio", "stress-ng", "xxd"];

/// Bytes that a job covers.
const SIZE: u64 = 8 << 20;

/// Where a job begins in device memory: not at the boundary of a page or block.
const OFFSET: u64 = 12_345;

/// Bytes on either side of a job that must not change.
const MARGIN: usize = 5000;

fn fio(arguments: &[&str]) -> Result<Output> {
    Command::new("fio")
        .args([
            "--name=job",
            "--output-format=json",
            "--thread",
            "--direct=1",
        ])
        .arg(format!("--filename={NODE}"))
        .arg(format!("--size={SIZE}"))
        .arg(format!("--offset={OFFSET}"))
        .args(arguments)
        .output()
        .context("cannot run fio")
}

/// Runs fio, which has to succeed; returns its report of the job.
fn job(arguments: &[&str]) -> Result<Value> {
    let output = fio(arguments)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "fio {arguments:?} failed ({}): {text}{errors}",
        output.status
    );
    // fio may print notes before the report.
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value =
        serde_json::from_str(json).with_context(|| format!("fio printed {text}"))?;
    let job = report["jobs"][0].clone();
    ensure!(job["error"] == 0, "{job}");
    Ok(job)
}

fn bytes_of(job: &Value, direction: &str) -> u64 {
    job[direction]["io_bytes"].as_u64().unwrap_or_default()
}

/// Writes blocks with checksums and verifies them, then writes and reads blocks of one byte and
/// more.
fn verified(how: &[&str]) -> Result<()> {
    let device = open()?;
    let before = device.device_statistics()?;
    let checked = checked(how, "--bsrange=512-1M")?;
    // Blocks of a few bytes cannot hold a checksum: they are filled with one byte, which is
    // compared here.
    let size = usize::try_from(SIZE)?;
    let mut content = vec![0xee; size + 2 * MARGIN];
    let begin = OFFSET - MARGIN as u64;
    device.file().write_all_at(&content, begin)?;
    let odd = ["--bsrange=1-1M", "--bs_unaligned", "--buffer_pattern=0x76"];
    let job_of = |direction| job(&[how, &[direction], &odd].concat());
    let written = bytes_of(&job_of("--rw=write")?, "write");
    let read = bytes_of(&job_of("--rw=read")?, "read");
    ensure!(
        written.min(read) > SIZE / 2,
        "{written} bytes written, {read} read"
    );
    device.file().read_exact_at(&mut content, begin)?;
    let end = MARGIN + usize::try_from(written)?;
    let wrong = content.iter().enumerate().position(|(index, &byte)| {
        let inside = (MARGIN..end).contains(&index);
        byte != if inside { 0x76 } else { 0xee }
    });
    ensure!(wrong.is_none(), "byte {wrong:?} has the wrong value");
    wait::until_idle(&device)?;
    let after = device.device_statistics()?;
    // The counts include what this test has transferred itself.
    let mine = content.len() as u64;
    ensure!(
        after.bytes_written - before.bytes_written == checked + written + mine
            && after.bytes_read - before.bytes_read == checked + read + mine,
        "{checked}, {written} and {mine} bytes were written, {read} read; the driver counts \
         {before:?} {after:?}"
    );
    ensure!(after.failed == before.failed, "{before:?} {after:?}");
    Ok(())
}

/// Writes blocks at random offsets, each with its checksum; returns the number of bytes that were
/// written and verified.
fn checked(how: &[&str], blocks: &str) -> Result<u64> {
    let random = [
        "--rw=randwrite",
        blocks,
        "--verify=crc32c",
        "--verify_fatal=1",
    ];
    let job = job(&[how, &random].concat())?;
    let written = bytes_of(&job, "write");
    // fio stops when the next block is larger than what is left.
    ensure!(
        written > SIZE / 2 && bytes_of(&job, "read") == written,
        "{job}"
    );
    Ok(written)
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn psync() -> Result<()> {
    verified(&["--ioengine=psync"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn pvsync2() -> Result<()> {
    verified(&["--ioengine=pvsync2"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn pvsync2_hipri() -> Result<()> {
    verified(&["--ioengine=pvsync2", "--hipri"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn libaio() -> Result<()> {
    verified(&["--ioengine=libaio", "--iodepth=16"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn io_uring() -> Result<()> {
    verified(&["--ioengine=io_uring", "--iodepth=16"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn io_uring_fixed_buffers() -> Result<()> {
    verified(&[
        "--ioengine=io_uring",
        "--iodepth=16",
        "--fixedbufs",
        "--registerfiles",
    ])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn io_uring_sqpoll() -> Result<()> {
    verified(&["--ioengine=io_uring", "--iodepth=16", "--sqthread_poll"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn io_uring_hipri() -> Result<()> {
    verified(&["--ioengine=io_uring", "--iodepth=16", "--hipri"])
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn mmap() -> Result<()> {
    let how = ["--ioengine=mmap", "--offset=8192"];
    let before = open()?.device_statistics()?;
    checked(&how, "--bsrange=4k-1M")?;
    let after = open()?.device_statistics()?;
    ensure!(
        before.bytes_written == after.bytes_written && before.bytes_read == after.bytes_read,
        "loads and stores became transfers: {before:?} {after:?}"
    );
    Ok(())
}

#[guest_test(packages = PACKAGES, timeout = 120)]
fn a_changed_byte_is_found() -> Result<()> {
    const ARGUMENTS: [&str; 5] = [
        "--ioengine=psync",
        "--rw=write",
        "--bs=4k",
        "--verify=crc32c",
        "--verify_fatal=1",
    ];
    job(&[&ARGUMENTS[..], &["--do_verify=0"]].concat())?;
    job(&[&ARGUMENTS[..], &["--verify_only"]].concat())?;
    let offset = OFFSET + 5 * 4096 + 2000;
    let mut byte = [0];
    let device = open()?;
    device.file().read_exact_at(&mut byte, offset)?;
    device.file().write_all_at(&[!byte[0]], offset)?;
    let output = fio(&[&ARGUMENTS[..], &["--verify_only"]].concat())?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "fio does not verify");
    ensure!(text.contains("crc32c: verify failed"), "{text}");
    Ok(())
}

/// Memory is short, and processes start and exit, while transfers are verified.
#[guest_test(packages = PACKAGES, timeout = 240)]
fn verified_under_stress() -> Result<()> {
    let mut stress = Command::new("stress-ng")
        .args([
            "--vm",
            "1",
            "--vm-bytes",
            "70%",
            "--fork",
            "1",
            "--mmap",
            "1",
        ])
        .args(["--madvise", "1", "--iomix", "1", "--temp-path", "/tmp"])
        .args(["--timeout", "15s", "--oom-avoid", "--quiet"])
        .spawn()
        .context("cannot run stress-ng")?;
    let mut rounds = 0;
    let ended = loop {
        verified(&["--ioengine=io_uring", "--iodepth=16"])?;
        verified(&["--ioengine=libaio", "--iodepth=16"])?;
        rounds += 1;
        if let Some(status) = stress.try_wait()? {
            break status;
        }
    };
    println!("{rounds} rounds");
    ensure!(ended.success(), "stress-ng ended with {ended}");
    Ok(())
}
