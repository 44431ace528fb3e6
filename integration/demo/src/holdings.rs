//! What the driver holds on behalf of programs: pinned pages, requests, the device node.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Context, Result};

/// What is held at a moment.
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
    /// The state now.
    pub(crate) fn now() -> Result<Self> {
        // Counters are kept for each CPU; this adds them up.
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
    // Free objects that CPUs keep for themselves count as used until they are given back.
    fs::write(format!("{directory}/shrink"), "1").with_context(|| directory.clone())?;
    let path = format!("{directory}/objects");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // "COUNT N0=COUNT ...": in all, then for each memory node.
    let total = text.split_whitespace().next().unwrap_or_default();
    total.parse().with_context(|| format!("{path}: {text:?}"))
}
