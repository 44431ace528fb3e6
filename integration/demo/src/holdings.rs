//! What the driver holds on behalf of programs: pinned pages, requests, the device node.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Context, Result};

/// What is held at one point in time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holdings {
    /// Pages pinned and not released.
    pub(crate) pinned: i64,
    /// Objects in use in the driver's slab caches.
    pub(crate) requests: u64,
    pub(crate) transfers: u64,
    /// Number and mode of the device node.
    pub(crate) node: (u64, u32),
}

impl Holdings {
    /// Reads the current state.
    pub(crate) fn now() -> Result<Self> {
        // The counters are per CPU; this sums them.
        fs::write("/proc/sys/vm/stat_refresh", "1").context("/proc/sys/vm/stat_refresh")?;
        let vmstat = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
        let count = |name: &str| -> Result<i64> {
            let line = vmstat
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line
                .with_context(|| format!("no {name} in /proc/vmstat"))?
                .parse()?)
        };
        let node = fs::metadata("/dev/vdma0").context("/dev/vdma0")?;
        Ok(Self {
            pinned: count("nr_foll_pin_acquired")? - count("nr_foll_pin_released")?,
            requests: objects("vdma_request")?,
            transfers: objects("vdma_transfer")?,
            node: (node.rdev(), node.mode()),
        })
    }
}

/// Objects in use in a slab cache.
fn objects(cache: &str) -> Result<u64> {
    let directory = format!("/sys/kernel/slab/{cache}");
    // Free objects in per-CPU caches count as used until the cache is shrunk.
    fs::write(format!("{directory}/shrink"), "1").with_context(|| directory.clone())?;
    let path = format!("{directory}/objects");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // "COUNT N0=COUNT ...": the total, then the count of each memory node.
    let total = text.split_whitespace().next().unwrap_or_default();
    total.parse().with_context(|| format!("{path}: {text:?}"))
}
