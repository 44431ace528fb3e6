//! The cache attribute of lazy and eager mappings.

use std::fs;

use anyhow::{Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{io::Errno, mm::MapFlags};
use vdma::{Cache, Device, MapMode};

use crate::{
    support::{MIB, PAGE, bytes, child::Child, drop_privileges, errno, open, region::Region},
    test,
};

/// Attributes that the kernel has reserved for the first page of the BAR.
fn reserved(device: &Device) -> Result<Vec<String>> {
    let Ok(list) = fs::read_to_string("/sys/kernel/debug/x86/pat_memtype_list") else {
        return test::skip("this kernel does not list memory types");
    };
    let start = format!("0x{:016x}-", device.info().bar_address);
    Ok(list
        .lines()
        .filter(|line| line.contains(&start))
        .filter_map(|line| line.rsplit(' ').next().map(str::to_owned))
        .collect())
}

#[guest_test]
fn cache_attributes_are_as_selected() -> Result<()> {
    let device = open()?;
    let data = bytes::random(3, PAGE);
    for (cache, names) in [
        (Cache::WriteCombining, &["write-combining"][..]),
        (Cache::Uncached, &["uncached", "uncached-minus"]),
        // Firmware may have declared the window uncached in an MTRR, which write-back does not
        // override.
        (Cache::WriteBack, &["write-back", "uncached-minus"]),
    ] {
        device.set_cache(cache)?;
        for mode in [MapMode::Eager, MapMode::Lazy] {
            device.set_map_mode(mode)?;
            let region = Region::file(device.file(), 0, MIB, MapFlags::SHARED)?;
            region.write(0, &data)?;
            bytes::expect_at(device.file(), 0, &data, "what was stored")?;
            let found = reserved(&device)?;
            ensure!(
                !found.is_empty() && found.iter().all(|name| names.contains(&name.as_str())),
                "{cache:?}, {mode:?}: the kernel has reserved {found:?}"
            );
        }
    }
    Ok(())
}

#[guest_test]
fn cache_attributes_are_fixed_while_mapped() -> Result<()> {
    let device = open()?;
    let region = Region::file(device.file(), 0, PAGE, MapFlags::SHARED)?;
    let refused = device.set_cache(Cache::Uncached);
    errno::expect_vdma(
        refused,
        Errno::BUSY,
        "a change of the attribute while mapped",
    )?;
    region.write(0, &[1])?;
    drop(region);
    device.set_cache(Cache::Uncached)?;
    device.set_cache(Cache::WriteBack)?;
    Child::fork(|| {
        drop_privileges()?;
        errno::expect_vdma(
            device.set_cache(Cache::Uncached),
            Errno::PERM,
            "an ordinary user",
        )
    })?
    .succeed()
}
