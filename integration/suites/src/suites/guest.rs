//! The guest itself: what every other suite relies on.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, FileTypeExt as _},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::{HostCall, call_host};
use guest_suites_macros::guest_test;

#[guest_test]
fn driver_is_bound() -> Result<()> {
    let bound = fs::read_dir("/sys/bus/virtio/drivers/vdma")
        .context("the driver is not registered")?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("virtio"))
        .count();
    ensure!(bound == 1, "{bound} devices are bound to the driver");
    Ok(())
}

#[guest_test]
fn node_is_a_character_device() -> Result<()> {
    let kind = fs::metadata("/dev/vdma0")
        .context("/dev/vdma0")?
        .file_type();
    ensure!(kind.is_char_device(), "/dev/vdma0 is {kind:?}");
    Ok(())
}

#[guest_test(devices = 3)]
fn every_device_has_its_node() -> Result<()> {
    for number in 0..3 {
        let node = format!("/dev/vdma{number}");
        ensure!(Path::new(&node).exists(), "{node} is missing");
    }
    ensure!(!Path::new("/dev/vdma3").exists(), "/dev/vdma3 is there");
    Ok(())
}

#[guest_test(visible_memory)]
fn harness_and_guest_see_the_same_memory() -> Result<()> {
    const OFFSET: u64 = 12_345;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/vdma0")
        .context("/dev/vdma0")?;
    device
        .write_all_at(b"from the guest", OFFSET)
        .context("cannot write to device memory")?;
    let seen = call_host(&HostCall::ReadMemory {
        device: 0,
        offset: OFFSET,
        length: 14,
    })?;
    ensure!(seen == b"from the guest", "the harness sees {seen:?}");
    call_host(&HostCall::WriteMemory {
        device: 0,
        offset: OFFSET,
        data: b"from the host".to_vec(),
    })?;
    let mut read = [0; 13];
    device
        .read_exact_at(&mut read, OFFSET)
        .context("cannot read device memory")?;
    ensure!(&read == b"from the host", "the guest reads {read:?}");
    let beyond = call_host(&HostCall::ReadMemory {
        device: 7,
        offset: 0,
        length: 1,
    });
    if beyond.is_ok() {
        bail!("the harness reads the memory of a device that does not exist");
    }
    Ok(())
}

#[guest_test]
fn pins_are_balanced_after_boot() -> Result<()> {
    let vmstat = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    let value = |name: &str| {
        vmstat.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(' ')?
                .parse::<u64>()
                .ok()
        })
    };
    let acquired = value("nr_foll_pin_acquired").context("no nr_foll_pin_acquired")?;
    let released = value("nr_foll_pin_released").context("no nr_foll_pin_released")?;
    ensure!(
        acquired == released,
        "{acquired} pages pinned, {released} released"
    );
    Ok(())
}
