//! The addresses of memory on its way to the device.

use anyhow::{Result, ensure};

use crate::demo::Demo;

/// Prints every kind of address of a few pages.
pub(crate) fn show(demo: &Demo) -> Result<()> {
    let mut memory = vec![1_u8; 3 * 4096];
    let pages = demo.device.explain(&mut memory, 1 << 20)?;
    println!("   entry       user virtual     kernel virtual   physical        bus  device");
    for page in &pages {
        println!(
            "   {:>5} {:>18x} {:>18x} {:>10x} {:>10x} {:>7x}",
            page.entry,
            page.address,
            page.kernel_address,
            page.physical_address,
            page.bus_address,
            page.offset
        );
    }
    let bytes: usize = pages.iter().map(|page| page.length as usize).sum();
    ensure!(bytes == memory.len(), "{bytes} bytes are explained");
    Ok(())
}
