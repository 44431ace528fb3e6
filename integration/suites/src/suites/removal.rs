//! The driver unbound from its device, and unloaded, while files and mappings are open.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, process::Signal};

use crate::support::{
    NODE, PAGE,
    aio::{Context, Opcode},
    batch::Batch,
    bytes,
    child::Child,
    driver::{self, Unbound},
    errno,
    faults::{self, SLOW},
    open, procfs,
    region::Region,
    wait,
};

#[guest_test]
fn calls_on_open_files_are_enodev() -> Result<()> {
    let device = open()?;
    let mut buffer = vec![0; 3 * PAGE];
    device.file().read_exact_at(&mut buffer, 0)?;
    let unbound = Unbound::new()?;
    let file = device.file();
    errno::expect(file.read_at(&mut buffer, 0), Errno::NODEV, "a read")?;
    errno::expect(file.write_at(&buffer, 0), Errno::NODEV, "a write")?;
    errno::expect(file.sync_all(), Errno::NODEV, "fsync")?;
    unbound.bind()
}

#[guest_test]
fn the_node_is_removed_and_recreated() -> Result<()> {
    let unbound = Unbound::new()?;
    ensure!(!Path::new(NODE).exists(), "{NODE} is still there");
    ensure!(open().is_err(), "{NODE} can still be opened");
    ensure!(driver::bound()?.is_empty(), "the driver is still bound");
    unbound.bind()?;
    let device = open()?;
    device.file().write_all_at(b"again", 0)?;
    ensure!(driver::bound()?.len() == 1, "the driver is not bound");
    Ok(())
}

#[guest_test]
fn accesses_to_mappings_raise_sigbus() -> Result<()> {
    let device = open()?;
    let mapping = device.map(0, 4 * PAGE)?;
    mapping.store(0, 1_u32)?;
    let unbound = Unbound::new()?;
    for offset in [0, PAGE + 4] {
        let loading = Child::fork(|| mapping.load::<u32>(offset).map(|_| ()).map_err(Into::into))?;
        loading.die_of(Signal::BUS).context("a load")?;
        let storing = Child::fork(|| mapping.store(offset, 7_u32).map_err(Into::into))?;
        storing.die_of(Signal::BUS).context("a store")?;
    }
    unbound.bind()?;
    // The old mapping stays dead when the driver is bound again.
    let loading = Child::fork(|| mapping.load::<u32>(0).map(|_| ()).map_err(Into::into))?;
    loading.die_of(Signal::BUS).context("a load afterwards")?;
    let fresh = open()?.map(0, PAGE)?;
    fresh.store(0, 9_u32)?;
    ensure!(fresh.load::<u32>(0)? == 9);
    Ok(())
}

#[guest_test]
fn old_files_stay_dead_after_rebinding() -> Result<()> {
    let old = open()?;
    Unbound::new()?.bind()?;
    let new = open()?;
    new.file().write_all_at(b"new", 0)?;
    let mut buffer = [0; 3];
    errno::expect(old.file().read_at(&mut buffer, 0), Errno::NODEV, "a read")?;
    errno::expect(old.file().write_at(b"old", 0), Errno::NODEV, "a write")?;
    new.file().read_exact_at(&mut buffer, 0)?;
    ensure!(&buffer == b"new", "the old file wrote to the new device");
    drop(old);
    new.file().read_exact_at(&mut buffer, 0)?;
    Ok(())
}

#[guest_test]
fn dead_files_cannot_be_mapped() -> Result<()> {
    let old = open()?;
    let unbound = Unbound::new()?;
    let result = old.map(0, PAGE).map(|mapping| mapping.len());
    errno::expect_vdma(result, Errno::NODEV, "a mapping of a removed device")?;
    unbound.bind()?;
    let result = old.map(0, PAGE).map(|mapping| mapping.len());
    errno::expect_vdma(result, Errno::NODEV, "a mapping by an old file")
}

#[guest_test]
fn rebinding_works_many_times() -> Result<()> {
    for round in 0..10 {
        let kept = open()?;
        Unbound::new()?
            .bind()
            .with_context(|| format!("round {round}"))?;
        let device = open()?;
        let data = bytes::random(round, 3 * PAGE);
        device.file().write_all_at(&data, 99)?;
        let mapping = device.map(0, 4 * PAGE)?;
        let mut back = vec![0; data.len()];
        mapping.read(99, &mut back)?;
        bytes::expect(&back, &data, "through the mapping")?;
        drop(kept);
    }
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn requests_in_flight_complete_or_are_enodev() -> Result<()> {
    const BATCH: Batch = Batch::consecutive(6, PAGE, SLOW.start);
    let device = open()?;
    let mut context = Context::new(16)?;
    let region = Region::anonymous(BATCH.total())?;
    let mut iocbs = BATCH.iocbs(Opcode::Read, &device, &region)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { context.submit_all(&mut iocbs) }?;
    let unbound = Unbound::new()?;
    for completion in context.wait_raw(BATCH.count)? {
        ensure!(
            completion.is_bytes(PAGE) || completion.is_error(Errno::NODEV),
            "{completion:?}"
        );
    }
    context.expect_none()?;
    unbound.bind()?;
    open()?
        .file()
        .write_all_at(&bytes::random(1, 2 * PAGE), 0)?;
    Ok(())
}

#[guest_test(device_arguments = faults::ARGUMENTS)]
fn a_blocked_read_returns() -> Result<()> {
    let observer = open()?;
    let child = Child::fork(|| {
        let mut buffer = vec![0; PAGE];
        let device = open()?;
        match device.file().read_at(&mut buffer, faults::VERY_SLOW.start) {
            Ok(PAGE) => Ok(()),
            Ok(moved) => bail!("{moved} bytes"),
            Err(error) => errno::expect::<(), _>(Err(error), Errno::NODEV, "a waiting read"),
        }
    })?;
    wait::until_busy(&observer)?;
    let unbound = Unbound::new()?;
    child.succeed()?;
    unbound.bind()
}

#[guest_test(devices = 2)]
fn removing_one_device_keeps_the_other() -> Result<()> {
    let devices = ["/dev/vdma0", "/dev/vdma1"].map(vdma::Device::open);
    let [zero, one] = devices;
    let devices = [zero?, one?];
    for (number, device) in devices.iter().enumerate() {
        device
            .file()
            .write_all_at(&[u8::try_from(number)? + 1; 100], 0)?;
    }
    let unbound = Unbound::new()?;
    let lost = usize::from(!Path::new("/dev/vdma0").exists());
    let (dead, alive) = if lost == 1 {
        (&devices[0], &devices[1])
    } else {
        (&devices[1], &devices[0])
    };
    let mut buffer = [0; 100];
    errno::expect(
        dead.file().read_at(&mut buffer, 0),
        Errno::NODEV,
        "a read from the removed device",
    )?;
    alive
        .file()
        .read_exact_at(&mut buffer, 0)
        .context("the other device")?;
    ensure!(buffer[0] != 0 && buffer.iter().all(|&byte| byte == buffer[0]));
    unbound.bind()?;
    ensure!(driver::bound()?.len() == 2, "not both devices are bound");
    // The number of the removed node is used again.
    for node in ["/dev/vdma0", "/dev/vdma1"] {
        vdma::Device::open(node)?
            .file()
            .read_exact_at(&mut buffer, 0)?;
    }
    Ok(())
}

fn unload_is_refused() -> Result<()> {
    match driver::unload() {
        Ok(()) => {
            driver::load()?;
            bail!("the module could be unloaded")
        }
        Err(error) => {
            ensure!(error.to_string().contains("in use"), "{error:#}");
            Ok(())
        }
    }
}

#[guest_test]
fn an_open_file_prevents_unloading() -> Result<()> {
    let device = open()?;
    unload_is_refused()?;
    let mut buffer = [0; 10];
    device.file().read_exact_at(&mut buffer, 0)?;
    let unbound = Unbound::new()?;
    unload_is_refused().context("without the device")?;
    unbound.bind()
}

#[guest_test]
fn a_mapping_prevents_unloading() -> Result<()> {
    let mapping = open()?.map(0, PAGE)?;
    unload_is_refused()?;
    mapping.store(0, 5_u8)?;
    ensure!(mapping.load::<u8>(0)? == 5);
    Ok(())
}

const CACHES: [&str; 2] = ["vdma_request", "vdma_transfer"];

#[guest_test]
fn unloading_leaves_no_slab_cache() -> Result<()> {
    for name in CACHES {
        ensure!(procfs::slab(name)?.is_some(), "{name} is not there");
    }
    open()?
        .file()
        .write_all_at(&bytes::random(1, 10 * PAGE), 0)?;
    driver::unload()?;
    let left: Vec<&str> = CACHES
        .into_iter()
        .filter(|name| procfs::slab(name).is_ok_and(|slab| slab.is_some()))
        .collect();
    let nodes = Path::new(NODE).exists();
    let loaded = driver::is_loaded();
    driver::load()?;
    ensure!(left.is_empty(), "{left:?} are left after unloading");
    ensure!(!nodes, "{NODE} is left after unloading");
    ensure!(!loaded, "the module is still loaded");
    Ok(())
}

#[guest_test]
fn reloading_works() -> Result<()> {
    for round in 0..3 {
        driver::unload().with_context(|| format!("round {round}"))?;
        driver::load().with_context(|| format!("round {round}"))?;
        let device = open()?;
        let data = bytes::random(round, 5 * PAGE);
        bytes::round_trip(device.file(), 7, &data, "what was read back")?;
        let text = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
        ensure!(!text.contains(NODE), "a mapping is left");
    }
    Ok(())
}
