//! The PCI function in sysfs.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::demo::Demo;

/// Number of lines of a PCI function's `resource` file that describe BARs.
const BARS: usize = 6;

/// Prints identity, BARs and driver of the function of `/dev/vdma0`.
pub(crate) fn show(_: &Demo) -> Result<()> {
    let nodes = vdma::nodes()?;
    let node = nodes.first().context("the driver has no device")?;
    let address = node.pci.as_ref().context("the device is not on PCI")?;
    let function = Path::new("/sys/bus/pci/devices").join(address);
    let read = |name: &str| -> Result<String> {
        let path = function.join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().to_owned())
    };
    println!(
        "   {address}: vendor {}, device {}, revision {}",
        read("vendor")?,
        read("device")?,
        read("revision")?
    );
    for (number, line) in read("resource")?.lines().take(BARS).enumerate() {
        if let Some((first, size)) = bar(line) {
            println!("   BAR {number}: {} at {first:#x}", human(size));
        }
    }
    let driver = Path::new("/sys/bus/virtio/devices")
        .join(&node.virtio)
        .join("driver");
    let driver = fs::canonicalize(&driver).with_context(|| driver.display().to_string())?;
    ensure!(
        driver.ends_with("vdma"),
        "{} is bound to {}",
        node.virtio,
        driver.display()
    );
    println!(
        "   {} is bound to vdma: {}",
        node.virtio,
        node.path.display()
    );
    Ok(())
}

/// Parses first address and size of a BAR from its line (first, last, flags); `None` if unused.
fn bar(line: &str) -> Option<(u64, u64)> {
    let mut numbers = line
        .split_whitespace()
        .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let (first, last) = (numbers.next()?, numbers.next()?);
    (first != 0).then(|| (first, last.saturating_sub(first) + 1))
}

fn human(bytes: u64) -> String {
    match bytes {
        mib if mib >= 1 << 20 => format!("{} MiB", mib >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn unused_bars_are_not_shown() {
        assert_eq!(
            bar("0x00000000f4000000 0x00000000f7ffffff 0x000000000014220c"),
            Some((0xf400_0000, 64 << 20))
        );
        assert_eq!(
            bar("0x0000000000000000 0x0000000000000000 0x0000000000000000"),
            None
        );
        assert_eq!(bar(""), None);
    }
}
