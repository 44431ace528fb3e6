//! The driver has released everything that it held for this program.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{demo::Demo, holdings::Holdings};

/// Limit on the time until the kernel has freed what it frees in the background.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);

/// Compares with the state at the beginning.
pub(crate) fn show(demo: &Demo) -> Result<()> {
    let deadline = Instant::now() + RELEASE_DEADLINE;
    let mut now = Holdings::now()?;
    while now != demo.before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        now = Holdings::now()?;
    }
    let line = |what: &str, before: String, now: String| {
        println!("   {what:<35} before {before:>12}   now {now:>12}");
    };
    let before = &demo.before;
    line(
        "pinned pages",
        before.pinned.to_string(),
        now.pinned.to_string(),
    );
    line(
        "objects in slab cache vdma_request",
        before.requests.to_string(),
        now.requests.to_string(),
    );
    line(
        "objects in slab cache vdma_transfer",
        before.transfers.to_string(),
        now.transfers.to_string(),
    );
    let node = |(device, mode): (u64, u32)| format!("{device:#x} {mode:o}");
    line(
        "device node: number and mode",
        node(before.node),
        node(now.node),
    );
    ensure!(now == demo.before, "something was left behind");
    Ok(())
}
