//! The peers that the device is compared with: virtio-blk disks of the same guest.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result};

use crate::vm::qemu::RUN;

/// Device memory, and the size of each disk.
pub(super) const SIZE_MIB: u64 = 64;

/// A disk.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Name in reports.
    pub(crate) name: &'static str,
    /// Serial number, by which the guest finds it.
    pub(crate) serial: &'static str,
    /// Driver and options of its block device, before its size.
    backing: &'static str,
}

/// All peers, each with its own I/O thread. Targets apply to the first.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "virtio-blk, file in memory",
        serial: "bench-file",
        backing: "file",
    },
    Peer {
        name: "virtio-blk, null-co (copies nothing)",
        serial: "bench-null",
        backing: "null-co",
    },
];

/// Creates the files of those peers that have one, in a guest's run directory.
pub(crate) fn make_files(directory: &Path, mib: u64) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    for peer in PEERS.iter().filter(|peer| peer.backing == "file") {
        let path = directory.join(format!("{}.img", peer.serial));
        File::create(&path)
            .and_then(|file| file.set_len(mib << 20))
            .with_context(|| format!("cannot create {}", path.display()))?;
    }
    Ok(())
}

/// Returns QEMU's arguments for the peers, each of `mib` MiB.
pub(crate) fn qemu_arguments(mib: u64) -> Vec<String> {
    let size = mib << 20;
    PEERS
        .iter()
        .flat_map(|peer| {
            let serial = peer.serial;
            let backing = match peer.backing {
                // The file stays in the page cache, so that no request waits for a disk.
                "file" => format!(
                    "driver=raw,file.driver=file,file.filename={RUN}/{serial}.img,cache.no-flush=on"
                ),
                driver => format!("driver={driver},size={size},read-zeroes=off"),
            };
            [
                "-object".to_owned(),
                format!("iothread,id={serial}-thread"),
                "-blockdev".to_owned(),
                format!("{backing},node-name={serial}"),
                "-device".to_owned(),
                format!(
                    "virtio-blk-pci,drive={serial},serial={serial},iothread={serial}-thread,\
                     num-queues=1,queue-size=256"
                ),
            ]
        })
        .collect()
}
