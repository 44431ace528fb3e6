use std::path::Path;

use serde_json::json;
use vdma::Device;

use super::output::{JSON_VERSION, Output, print_json};

/// The length of a range that begins at `offset`; without `length`, to the end of device memory.
fn length_from(device: &Device, offset: u64, length: Option<u64>) -> u64 {
    length.unwrap_or_else(|| device.info().memory_size.saturating_sub(offset))
}

pub(super) fn fill(
    path: &Path,
    offset: u64,
    length: Option<u64>,
    pattern: u64,
) -> anyhow::Result<()> {
    let device = Device::open(path)?;
    device.fill(offset, length_from(&device, offset, length), pattern)?;
    Ok(())
}

pub(super) fn move_within(path: &Path, to: u64, from: u64, length: u64) -> anyhow::Result<()> {
    Device::open(path)?.move_within(to, from, length)?;
    Ok(())
}

pub(super) fn discard(path: &Path, offset: u64, length: Option<u64>) -> anyhow::Result<()> {
    let device = Device::open(path)?;
    device.discard(offset, length_from(&device, offset, length))?;
    Ok(())
}

pub(super) fn flush(path: &Path) -> anyhow::Result<()> {
    Device::open(path)?.flush()?;
    Ok(())
}

pub(super) fn checksum(
    path: &Path,
    offset: u64,
    length: Option<u64>,
    output: Output,
) -> anyhow::Result<()> {
    let device = Device::open(path)?;
    let length = length_from(&device, offset, length);
    let crc = device.crc32c(offset, length, 0)?;
    match output {
        Output::Text => print_line!("{crc:08x}")?,
        Output::Json => print_json(&json!({
            "version": JSON_VERSION,
            "offset": offset,
            "length": length,
            "crc32c": crc,
        }))?,
    }
    Ok(())
}
