//! The mapped BAR: guest and backend access the same bytes.
//!
//! The harness reads and writes the backend's memory on the host, so the data shown here has left
//! the guest.

use std::fs;

use anyhow::{Context, Result, ensure};
use guest_agent::{HostCall, call_host};

use crate::demo::Demo;

/// Where the demo writes, in bytes from the start of device memory.
const OFFSET: u64 = 1 << 20;

/// Length of the mapping, in bytes.
const LENGTH: usize = 4096;

/// Stores through the mapping, and has the harness read the backend's memory.
pub(crate) fn guest_to_backend(demo: &Demo) -> Result<()> {
    let device = &demo.device;
    let memory = device.map(OFFSET, LENGTH)?;
    let maps = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    let line = maps
        .lines()
        .find(|line| line.contains("/dev/vdma0"))
        .context("the mapping is not in /proc/self/maps")?;
    println!("   {line}");
    let word = 0x0123_4567_89ab_cdef_u64;
    memory.store(0, word)?;
    println!("   stored {word:#018x} at {OFFSET:#x}");
    let seen = call_host(&HostCall::ReadMemory {
        device: 0,
        offset: OFFSET,
        length: 8,
    })?;
    ensure!(seen == word.to_le_bytes(), "the backend has {seen:02x?}");
    println!("   the backend has {seen:02x?}");
    Ok(())
}

/// Has the harness write to the backend's memory, and loads through the mapping.
pub(crate) fn backend_to_guest(demo: &Demo) -> Result<()> {
    let device = &demo.device;
    let memory = device.map(OFFSET, LENGTH)?;
    let word = 0xfedc_ba98_7654_3210_u64;
    let before: u64 = memory.load(64)?;
    call_host(&HostCall::WriteMemory {
        device: 0,
        offset: OFFSET + 64,
        data: word.to_le_bytes().to_vec(),
    })?;
    println!(
        "   the backend's memory at {:#x} becomes {word:#018x}",
        OFFSET + 64
    );
    let after: u64 = memory.load(64)?;
    ensure!(
        after == word,
        "loaded {after:#018x}, before it was {before:#018x}"
    );
    println!("   loaded {after:#018x}, before it was {before:#018x}");
    Ok(())
}
