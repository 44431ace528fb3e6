//! Buffers that are prepared for DMA once.

mod allocated;
mod charged;
mod registered;

use anyhow::{Result, ensure};
use guest_suites_macros::guest_test;
use rustix::io::Errno;
use vdma::{
    Device, Operation,
    protocol::{COMMAND_INCOMING_BUFFER, COMMAND_OUTGOING_BUFFER, Command},
};

use crate::support::{PAGE, bytes, errno, open};

/// A command whose data is in the buffer `id`.
pub(super) fn with_buffer(operation: Operation, id: u32, at: u64, length: usize) -> Command {
    Command {
        operation: operation.code(),
        flags: COMMAND_INCOMING_BUFFER | COMMAND_OUTGOING_BUFFER,
        length: length as u64,
        incoming: at,
        outgoing: at,
        incoming_buffer: id,
        outgoing_buffer: id,
        ..Command::default()
    }
}

#[guest_test]
fn buffers_work_with_every_operation() -> Result<()> {
    let device = open()?;
    let data = bytes::random(2, 3 * PAGE + 5);
    let mut memory = data.clone();
    let buffer = device.register(&mut memory)?;
    let other = device.allocate(data.len())?;
    device.write(77, buffer.source(None))?;
    ensure!(
        device.compare(77, buffer.source(None))?.is_none(),
        "compare"
    );
    let part = Some(0..data.len() as u64);
    device.copy(buffer.source(None), other.target(part.clone()))?;
    ensure!(
        device.compare(77, other.source(part.clone()))?.is_none(),
        "copy"
    );
    let crc = device.crc32c_of(buffer.source(None), 0)?;
    ensure!(crc == device.crc32c(77, data.len() as u64, 0)?, "crc32c");
    ensure!(
        crc == device.write_crc32c(77, other.source(part.clone()))?,
        "write with a checksum"
    );
    device.fill_memory(other.target(None), 0x1111_1111_1111_1111)?;
    ensure!(other.load::<u64>(8)? == 0x1111_1111_1111_1111, "fill");
    ensure!(
        crc == device.read_crc32c(77, other.target(part))?,
        "read with a checksum"
    );
    let mut back = vec![0; data.len()];
    other.read(0, &mut back)?;
    bytes::expect(&back, &data, "the allocated buffer in the end")
}

#[guest_test]
fn buffers_are_private_to_their_file() -> Result<()> {
    let device = open()?;
    let other: Device = open()?;
    let buffer = device.allocate(PAGE)?;
    let mut command = with_buffer(Operation::Read, buffer.id(), 0, 10);
    // SAFETY: The command names a buffer only.
    let result = unsafe { other.run(&mut command) };
    errno::expect_vdma(result, Errno::NOENT, "another file's buffer")?;
    Ok(())
}
