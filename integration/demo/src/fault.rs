//! Device memory that is mapped on first access.

use anyhow::{Result, ensure};
use vdma::{Device, MapMode};

use crate::demo::Demo;

/// Length of the mapping, in bytes.
const LENGTH: usize = 16 << 20;

/// Accesses every page of a lazy mapping, and prints the number of faults.
pub(crate) fn show(demo: &Demo) -> Result<()> {
    let device = Device::open(demo.device.path())?;
    device.set_map_mode(MapMode::Lazy)?;
    let memory = device.map(0, LENGTH)?;
    for offset in (0..LENGTH).step_by(4096) {
        memory.store(offset, 0x5a_u8)?;
    }
    let statistics = device.file_statistics()?;
    println!(
        "   {} pages touched: {} faults of huge pages, {} of small ones",
        LENGTH / 4096,
        statistics.huge_faults,
        statistics.faults
    );
    ensure!(
        statistics.huge_faults + statistics.faults > 0,
        "no page was mapped by a fault"
    );
    Ok(())
}
