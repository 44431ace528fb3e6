use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, bail, ensure};
use vdma::Device;

/// Bytes that one call moves.
const CHUNK: usize = 4 << 20;

pub(super) fn read(
    path: &Path,
    offset: u64,
    length: Option<u64>,
    output: &Path,
) -> anyhow::Result<()> {
    let device = Device::open(path)?;
    let end = end_of(&device, offset, length)?;
    let mut sink: Box<dyn Write> = if output == Path::new("-") {
        Box::new(io::stdout().lock())
    } else {
        Box::new(File::create(output).with_context(|| format!("{}", output.display()))?)
    };
    let mut buffer = vec![0; CHUNK];
    let mut at = offset;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        device
            .file()
            .read_exact_at(&mut buffer[..want], at)
            .with_context(|| format!("{}: read of {want} bytes at {at:#x}", path.display()))?;
        sink.write_all(&buffer[..want])
            .with_context(|| format!("{}", output.display()))?;
        at += want as u64;
    }
    sink.flush()
        .with_context(|| format!("{}", output.display()))
}

pub(super) fn write(
    path: &Path,
    offset: u64,
    length: Option<u64>,
    input: &Path,
) -> anyhow::Result<()> {
    let device = Device::open(path)?;
    // Only an explicit length must fit as a whole; without one the input decides.
    let end = match length {
        Some(_) => end_of(&device, offset, length)?,
        None => end_of(&device, offset, Some(0)).map(|_| u64::MAX)?,
    };
    let mut source: Box<dyn Read> = if input == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(input).with_context(|| format!("{}", input.display()))?)
    };
    let mut buffer = vec![0; CHUNK];
    let mut at = offset;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let got = read_full(&mut source, &mut buffer[..want])
            .with_context(|| format!("{}", input.display()))?;
        if got == 0 {
            break;
        }
        let left = device.info().memory_size.saturating_sub(at);
        if got as u64 > left {
            bail!(
                "{}: the input does not fit: device memory ends at {:#x}; use --length to cut it",
                path.display(),
                device.info().memory_size
            );
        }
        device
            .file()
            .write_all_at(&buffer[..got], at)
            .with_context(|| format!("{}: write of {got} bytes at {at:#x}", path.display()))?;
        at += got as u64;
    }
    Ok(())
}

/// Where a range ends, after a check that it is inside of device memory.
fn end_of(device: &Device, offset: u64, length: Option<u64>) -> anyhow::Result<u64> {
    let size = device.info().memory_size;
    let end = match length {
        None => Some(size.max(offset)),
        Some(length) => offset.checked_add(length),
    };
    let Some(end) = end.filter(|end| *end <= size) else {
        bail!(
            "{}: the range begins at {offset:#x} and leaves device memory, which has {size:#x} bytes",
            device.path().display()
        );
    };
    ensure!(end >= offset, "the range is longer than 2^64 bytes");
    Ok(end)
}

/// Reads until the buffer is full or the input ends.
fn read_full(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
