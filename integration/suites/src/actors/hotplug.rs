//! Actors for a device that is unplugged and plugged in.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{io::Errno, process::Signal};
use vdma::Device;

use super::ready::{GONE, say_ready};
use crate::support::{
    MIB, NODE, PAGE,
    aio::{Context, Opcode},
    batch::Batch,
    bytes,
    child::Child,
    errno, open, procfs,
    region::Region,
    wait,
};

/// Offset at which the device never completes a request: 1 MiB from here. The harness starts the
/// backend with that fault.
const LOST: u64 = 43 << 20;

/// Requests that one process has in flight.
const IN_FLIGHT: Batch = Batch::consecutive(1000, 512, LOST);

/// Processes that are blocked in a plain read.
const READERS: usize = 8;

/// Has files, mappings, plain calls and a thousand requests in use when the device is unplugged.
pub(super) fn hold_an_unplugged_device() -> Result<()> {
    let pinned = procfs::pinned_pages()?;
    let device = open()?;
    let mapping = device.map(0, 4 * PAGE)?;
    mapping.store(0, 1_u32)?;
    let readers = (0..READERS)
        .map(|number| {
            Child::fork(|| {
                let mut buffer = vec![0; PAGE + number];
                let result = open()?.file().read_at(&mut buffer, LOST);
                errno::expect(result, Errno::NODEV, "a waiting read")
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let accessor = Child::fork(|| {
        let deadline = Instant::now() + GONE;
        while Instant::now() < deadline {
            mapping.load::<u32>(PAGE)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the mapping still works")
    })?;
    let mut context = Context::new(u32::try_from(IN_FLIGHT.count)?)?;
    let region = Region::anonymous(IN_FLIGHT.total())?;
    let mut iocbs = IN_FLIGHT.iocbs(Opcode::Read, &device, &region)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { context.submit_all(&mut iocbs) }?;
    let all = (IN_FLIGHT.count + READERS) as u64;
    wait::until("all requests are in flight", || {
        Ok(device.device_statistics()?.in_flight == all)
    })?;
    ensure!(procfs::pinned_pages()? > pinned, "nothing is pinned");
    say_ready()?;
    wait::until("the node is removed", || Ok(!Path::new(NODE).exists()))?;
    context.wait_for_error(IN_FLIGHT.count, Errno::NODEV)?;
    context.expect_none()?;
    for reader in readers {
        reader.succeed()?;
    }
    accessor
        .die_of(Signal::BUS)
        .context("a load from the mapping")?;
    let mut buffer = [0; 10];
    errno::expect(
        device.file().read_at(&mut buffer, 0),
        Errno::NODEV,
        "a read",
    )?;
    errno::expect(device.file().write_at(&buffer, 0), Errno::NODEV, "a write")?;
    let mapped = device.map(0, PAGE).map(|mapping| mapping.len());
    errno::expect_vdma(mapped, Errno::NODEV, "a mapping")?;
    wait::until("all pages are unpinned", || {
        Ok(procfs::pinned_pages()? == pinned)
    })
}

/// Transfers data to the device that there is, and maps it.
pub(super) fn use_a_new_device() -> Result<()> {
    let find = || -> Result<Option<String>> {
        for entry in fs::read_dir("/dev")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("vdma") {
                return Ok(Some(format!("/dev/{name}")));
            }
        }
        Ok(None)
    };
    wait::until("a device node appears", || Ok(find()?.is_some()))?;
    let device = Device::open(find()?.context("the node has disappeared")?)?;
    let data = bytes::random(1, 3 * MIB + 1);
    bytes::round_trip(device.file(), 4097, &data, "what was read back")?;
    let mapping = device.map(0, 4 * MIB)?;
    let mut back = vec![0; data.len()];
    mapping.read(4097, &mut back)?;
    bytes::expect(&back, &data, "through the mapping")
}

/// Fails unless the driver has released everything.
pub(super) fn hold_nothing() -> Result<()> {
    wait::until(
        "all pages are unpinned",
        || Ok(procfs::pinned_pages()? == 0),
    )?;
    for name in ["vdma_request", "vdma_transfer"] {
        let shrink = format!("/sys/kernel/slab/{name}/shrink");
        wait::until(&format!("{name} is empty"), || {
            // Free objects in the cache of a CPU count as used until it is shrunk.
            fs::write(&shrink, "1").context(shrink.clone())?;
            let (used, _, _) = procfs::slab(name)?.with_context(|| format!("no {name}"))?;
            Ok(used == 0)
        })?;
    }
    let mut users = String::new();
    wait::until("the module has no users", || {
        users = fs::read_to_string("/sys/module/vdma/refcnt")?;
        Ok(users.trim() == "0")
    })
}
