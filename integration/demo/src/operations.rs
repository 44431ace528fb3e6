//! Operations on buffers that are mapped for DMA once.

use anyhow::{Result, ensure};

use crate::demo::Demo;

/// Length of each buffer, in bytes.
const LENGTH: usize = 1 << 20;

/// Transfers data from a registered buffer through the device to an allocated one.
pub(crate) fn show(demo: &Demo) -> Result<()> {
    let device = &demo.device;
    let mut memory: Vec<u8> = (0_u8..=250).cycle().take(LENGTH).collect();
    let registered = device.register(&mut memory)?;
    let allocated = device.allocate(LENGTH)?;
    println!(
        "   1 MiB of this program's memory is pinned long-term; 1 MiB of the driver's has {} run(s) of pages",
        allocated.runs()
    );
    let before = device.file_statistics()?;
    let written = device.write_crc32c(0, registered.source(None))?;
    device.move_within(4 << 20, 0, LENGTH as u64)?;
    let read = device.read_crc32c(4 << 20, allocated.target(None))?;
    let stored = device.crc32c(4 << 20, LENGTH as u64, 0)?;
    let difference = device.compare(4 << 20, registered.source(None))?;
    let after = device.file_statistics()?;
    println!(
        "   written, moved in the device, read back: CRC32C {written:08x}, {stored:08x}, {read:08x}"
    );
    println!(
        "   {} requests, {} pages pinned for them; compared by the device: {}",
        after.completed - before.completed,
        after.pages_pinned - before.pages_pinned,
        difference.map_or("no difference".to_owned(), |at| format!(
            "different at {at}"
        ))
    );
    ensure!(written == read && read == stored, "the checksums differ");
    ensure!(difference.is_none(), "the data differ");
    ensure!(
        allocated.load::<u8>(250)? == 250,
        "what was read is not what was sent"
    );
    Ok(())
}
