//! Checking a request and executing it.

use std::sync::Arc;

use vdma_protocol::{Operation, RequestHeader, Status};
use vm_memory::VolatileSlice;

use super::{
    kernels::{self, BounceBuffer},
    segments::Segments,
};
use crate::memory::DeviceMemory;

/// Most data bytes of one request.
pub const MAX_TRANSFER: u32 = 1 << 30;

/// The outcome of an operation, as the response reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// OK, or why the operation was not carried out.
    pub status: Status,
    /// Bytes processed: `length` on success, otherwise 0.
    pub transferred: u32,
    /// The operation's result, 0 for an operation without one.
    pub value: u64,
}

impl Outcome {
    /// Nothing was done, because of `status`.
    #[must_use]
    pub const fn refused(status: Status) -> Self {
        Self {
            status,
            transferred: 0,
            value: 0,
        }
    }
}

/// Executes operations on one device's memory. Each queue has its own engine, with its own buffers.
#[derive(Debug)]
pub struct Engine {
    memory: Arc<DeviceMemory>,
    bounce: BounceBuffer,
    /// For COMPARE, which inspects two sides.
    second_bounce: BounceBuffer,
}

/// A request that has passed all checks.
struct Checked<'m> {
    operation: Operation,
    length: u32,
    /// The range at `offset`; empty for an operation that has none.
    device: VolatileSlice<'m>,
    /// The range at `argument`; empty for an operation that has none.
    source: VolatileSlice<'m>,
}

impl Checked<'_> {
    /// Fails with `IO_ERROR` if pages of the device ranges are missing.
    #[inline]
    fn require_pages(&self, memory: &DeviceMemory) -> Result<(), Status> {
        if memory.is_poisoned(&[&self.device, &self.source]) {
            return Err(Status::IO_ERROR);
        }
        Ok(())
    }
}

impl Engine {
    /// The operations of this engine, as in [`vdma_protocol::Config::operations`].
    #[must_use]
    pub fn operations() -> u64 {
        Operation::ALL.iter().fold(0, |mask, op| mask | op.bit())
    }

    /// An engine on `memory`.
    #[must_use]
    pub fn new(memory: Arc<DeviceMemory>) -> Self {
        Self {
            memory,
            bounce: BounceBuffer::new(),
            second_bounce: BounceBuffer::new(),
        }
    }

    /// The memory that this engine works on.
    #[must_use]
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// Checks a request and executes it. A request that fails a check changes nothing.
    pub fn execute(
        &mut self,
        header: &RequestHeader,
        outgoing: &Segments<'_, '_>,
        incoming: &Segments<'_, '_>,
    ) -> Outcome {
        self.check_and_run(header, outgoing, incoming)
            .unwrap_or_else(Outcome::refused)
    }

    fn check_and_run(
        &mut self,
        header: &RequestHeader,
        outgoing: &Segments<'_, '_>,
        incoming: &Segments<'_, '_>,
    ) -> Result<Outcome, Status> {
        let Self {
            memory,
            bounce,
            second_bounce,
        } = self;
        let checked = check(memory, header, outgoing, incoming)?;
        checked.require_pages(memory)?;
        let buffers = [bounce, second_bounce];
        let value = run(memory, buffers, &checked, header, outgoing, incoming)?;
        // A page that was missing, here or to another thread meanwhile, has been replaced.
        checked.require_pages(memory)?;
        Ok(Outcome {
            status: Status::OK,
            transferred: checked.length,
            value,
        })
    }
}

/// Checks a request, in the order that the specification gives: operation, flags, length and data
/// parts, ranges.
fn check<'m>(
    memory: &'m DeviceMemory,
    header: &RequestHeader,
    outgoing: &Segments<'_, '_>,
    incoming: &Segments<'_, '_>,
) -> Result<Checked<'m>, Status> {
    let operation = Operation::from_code(header.operation.get()).ok_or(Status::UNSUPPORTED)?;
    if header.flags.get() != 0 {
        return Err(Status::BAD_FLAGS);
    }
    let shape = operation.shape();
    let bytes = header.length.get();
    let length = u32::try_from(bytes)
        .ok()
        .filter(|&length| length <= MAX_TRANSFER)
        .ok_or(Status::BAD_LENGTH)?;
    if (outgoing.len(), incoming.len()) != shape.data_lengths(bytes) {
        return Err(Status::BAD_LENGTH);
    }
    let range = |begin: Option<u64>| match begin {
        Some(begin) => memory.slice(begin, bytes).ok_or(Status::BAD_RANGE),
        None => Ok(VolatileSlice::from(&mut [][..])),
    };
    let [device, source] = shape.ranges(header);
    Ok(Checked {
        operation,
        length,
        device: range(device)?,
        source: range(source)?,
    })
}

/// Executes a checked request; returns the operation's result.
fn run(
    memory: &DeviceMemory,
    [bounce, second_bounce]: [&mut BounceBuffer; 2],
    checked: &Checked<'_>,
    header: &RequestHeader,
    outgoing: &Segments<'_, '_>,
    incoming: &Segments<'_, '_>,
) -> Result<u64, Status> {
    let Checked { device, source, .. } = checked;
    let argument = header.argument.get();
    match checked.operation {
        Operation::Nop => {}
        Operation::Read => kernels::copy(swap(kernels::with_device(incoming, device))),
        Operation::Write => kernels::copy(kernels::with_device(outgoing, device)),
        Operation::Copy => kernels::copy_across(outgoing, incoming),
        Operation::Move => source.copy_to_volatile_slice(*device),
        Operation::Fill => kernels::fill(bounce, std::iter::once(*device), argument),
        Operation::FillGuest => kernels::fill(bounce, incoming.pieces(), argument),
        Operation::Compare => {
            return Ok(kernels::compare([bounce, second_bounce], outgoing, device));
        }
        Operation::Crc32c => {
            return Ok(kernels::checksum(
                bounce,
                std::iter::once(*device),
                argument,
            ));
        }
        Operation::Crc32cGuest => {
            return Ok(kernels::checksum(bounce, outgoing.pieces(), argument));
        }
        Operation::ReadCrc32c => {
            let pairs = swap(kernels::with_device(incoming, device));
            return Ok(kernels::copy_checksum(bounce, pairs, argument));
        }
        Operation::WriteCrc32c => {
            let pairs = kernels::with_device(outgoing, device);
            return Ok(kernels::copy_checksum(bounce, pairs, argument));
        }
        Operation::Flush => memory.flush().map_err(|e| {
            log::error!("cannot flush the memory file: {e}; the request fails with IO_ERROR");
            Status::IO_ERROR
        })?,
        Operation::Discard => {
            let (offset, length) = (header.offset.get(), header.length.get());
            memory.discard(offset, length).map_err(|e| {
                log::error!("cannot discard {length} bytes at {offset}: {e}");
                Status::IO_ERROR
            })?;
        }
    }
    Ok(0)
}

/// Exchanges source and target of each pair.
fn swap<A, B>(pairs: impl Iterator<Item = (A, B)>) -> impl Iterator<Item = (B, A)> {
    pairs.map(|(a, b)| (b, a))
}
