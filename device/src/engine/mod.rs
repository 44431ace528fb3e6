//! What the device does: operations over device memory and the data of a request.
//!
//! Nothing here knows of virtio. Data comes as lists of [`VolatileSlice`]s, which a test makes from
//! plain byte arrays and the device from guest memory. Such memory may change at any time, so no
//! byte is looked at twice: what has to be inspected is first copied into a private buffer.

mod segments;

use std::sync::Arc;

use vdma_protocol::{Operation, RequestHeader, Status};
use vm_memory::VolatileSlice;

pub use self::segments::Segments;
use crate::{bus_error, memory::DeviceMemory};

/// Most data bytes of one request.
pub const MAX_TRANSFER: u32 = 1 << 30;

/// Bytes that are inspected at a time: small enough for the first-level cache.
const BOUNCE: usize = 16 << 10;

/// The outcome of an operation, as the response reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Done, or why not.
    pub status: Status,
    /// Bytes worked on: `length` when done, otherwise 0.
    pub transferred: u32,
    /// The operation's result, 0 for one that has none.
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

/// Executes operations on one device's memory. Each queue has its own, with its own buffer.
#[derive(Debug)]
pub struct Engine {
    memory: Arc<DeviceMemory>,
    bounce: Box<[u8]>,
    other: Box<[u8]>,
}

/// Which data parts an operation has.
struct Shape {
    outgoing: bool,
    incoming: bool,
    /// Whether `offset` names a range of device memory.
    device: bool,
}

const fn shape(operation: Operation) -> Shape {
    let (outgoing, incoming, device) = match operation {
        Operation::Nop | Operation::Flush => (false, false, false),
        Operation::Read | Operation::ReadCrc32c => (false, true, true),
        Operation::Write | Operation::WriteCrc32c | Operation::Compare => (true, false, true),
        Operation::Copy => (true, true, false),
        Operation::Move | Operation::Fill | Operation::Crc32c | Operation::Discard => {
            (false, false, true)
        }
        Operation::FillGuest => (false, true, false),
        Operation::Crc32cGuest => (true, false, false),
    };
    Shape {
        outgoing,
        incoming,
        device,
    }
}

/// Whether the operation writes the incoming data.
#[must_use]
pub const fn writes_incoming(operation: Operation) -> bool {
    shape(operation).incoming
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
            bounce: vec![0; BOUNCE].into_boxed_slice(),
            other: vec![0; BOUNCE].into_boxed_slice(),
        }
    }

    /// The memory that this engine works on.
    #[must_use]
    pub fn memory(&self) -> &DeviceMemory {
        &self.memory
    }

    /// Checks a request and carries it out. A request that fails a check changes nothing.
    pub fn execute(
        &mut self,
        header: &RequestHeader,
        outgoing: &Segments<'_, '_>,
        incoming: &Segments<'_, '_>,
    ) -> Outcome {
        let outcome = self
            .checked(header, outgoing, incoming)
            .unwrap_or_else(Outcome::refused);
        if let Some(address) = bus_error::fault()
            && self.memory.recover(address)
        {
            let _ = bus_error::take_fault();
            return Outcome::refused(Status::IO_ERROR);
        }
        outcome
    }

    fn checked(
        &mut self,
        header: &RequestHeader,
        outgoing: &Segments<'_, '_>,
        incoming: &Segments<'_, '_>,
    ) -> Result<Outcome, Status> {
        let operation = Operation::from_code(header.operation.get()).ok_or(Status::UNSUPPORTED)?;
        if header.flags.get() != 0 {
            return Err(Status::BAD_FLAGS);
        }
        let length = header.length.get();
        let transferred = u32::try_from(length)
            .ok()
            .filter(|&length| length <= MAX_TRANSFER)
            .ok_or(Status::BAD_LENGTH)?;
        let shape = shape(operation);
        let expect = |present: bool| if present { length } else { 0 };
        if outgoing.len() != expect(shape.outgoing) || incoming.len() != expect(shape.incoming) {
            return Err(Status::BAD_LENGTH);
        }
        let offset = header.offset.get();
        let argument = header.argument.get();
        let Self {
            memory,
            bounce,
            other,
        } = self;
        let device = if shape.device {
            memory.slice(offset, length).ok_or(Status::BAD_RANGE)?
        } else {
            VolatileSlice::from(&mut [][..])
        };

        let value = match operation {
            Operation::Nop => 0,
            Operation::Read => copy_out(&device, incoming),
            Operation::Write => copy_in(outgoing, &device),
            Operation::Copy => copy_across(outgoing, incoming),
            Operation::Move => {
                let source = memory.slice(argument, length).ok_or(Status::BAD_RANGE)?;
                source.copy_to_volatile_slice(device);
                0
            }
            Operation::Fill => fill(bounce, std::iter::once(device), argument),
            Operation::FillGuest => fill(bounce, incoming.pieces(), argument),
            Operation::Compare => compare(bounce, other, outgoing, &device),
            Operation::Crc32c => checksum(bounce, std::iter::once(device), argument),
            Operation::Crc32cGuest => checksum(bounce, outgoing.pieces(), argument),
            Operation::ReadCrc32c => {
                let mut at = 0;
                let pairs = incoming.pieces().map(|piece| {
                    let source = part(&device, at, piece.len());
                    at += piece.len();
                    (source, piece)
                });
                copy_checksum(bounce, pairs, argument)
            }
            Operation::WriteCrc32c => {
                let mut at = 0;
                let pairs = outgoing.pieces().map(|piece| {
                    let target = part(&device, at, piece.len());
                    at += piece.len();
                    (piece, target)
                });
                copy_checksum(bounce, pairs, argument)
            }
            Operation::Flush => {
                memory.flush().map_err(|e| {
                    log::error!("flush of the memory file failed: {e}; requests fail with it");
                    Status::IO_ERROR
                })?;
                0
            }
            Operation::Discard => {
                memory.discard(offset, length).map_err(|e| {
                    log::error!("discard of {length} bytes at {offset} failed: {e}");
                    Status::IO_ERROR
                })?;
                0
            }
        };
        Ok(Outcome {
            status: Status::OK,
            transferred,
            value,
        })
    }
}

fn fill<'m>(
    bounce: &mut [u8],
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
    pattern: u64,
) -> u64 {
    const PATTERN: usize = size_of::<u64>();
    for chunk in bounce.chunks_exact_mut(PATTERN) {
        chunk.copy_from_slice(&pattern.to_le_bytes());
    }
    let mut phase = 0;
    for piece in pieces {
        let mut done = 0;
        while done < piece.len() {
            let count = (piece.len() - done).min(BOUNCE - phase);
            let chunk = part(&piece, done, count);
            chunk.copy_from(&bounce[phase..phase + count]);
            done += count;
            phase = (phase + count) % PATTERN;
        }
    }
    0
}

fn compare(
    bounce: &mut [u8],
    other: &mut [u8],
    outgoing: &Segments<'_, '_>,
    device: &VolatileSlice<'_>,
) -> u64 {
    let mut equal = 0;
    for piece in outgoing.pieces() {
        let mut done = 0;
        while done < piece.len() {
            let count = (piece.len() - done).min(BOUNCE);
            let ours = &mut bounce[..count];
            let theirs = &mut other[..count];
            part(device, equal, count).copy_to(ours);
            part(&piece, done, count).copy_to(theirs);
            if ours != theirs {
                let same = ours.iter().zip(theirs.iter()).take_while(|(a, b)| a == b);
                return (equal + same.count()) as u64;
            }
            done += count;
            equal += count;
        }
    }
    equal as u64
}

fn checksum<'m>(
    bounce: &mut [u8],
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
    seed: u64,
) -> u64 {
    let mut crc = low_half(seed);
    for piece in pieces {
        let mut done = 0;
        while done < piece.len() {
            let chunk = &mut bounce[..(piece.len() - done).min(BOUNCE)];
            part(&piece, done, chunk.len()).copy_to(chunk);
            crc = crc32c::crc32c_append(crc, chunk);
            done += chunk.len();
        }
    }
    u64::from(crc)
}

/// Copies each pair's first to its second; the checksum is of the very bytes that arrive.
fn copy_checksum<'m, 'n>(
    bounce: &mut [u8],
    pairs: impl Iterator<Item = (VolatileSlice<'m>, VolatileSlice<'n>)>,
    seed: u64,
) -> u64 {
    let mut crc = low_half(seed);
    for (source, target) in pairs {
        let mut done = 0;
        while done < source.len() {
            let chunk = &mut bounce[..(source.len() - done).min(BOUNCE)];
            part(&source, done, chunk.len()).copy_to(chunk);
            crc = crc32c::crc32c_append(crc, chunk);
            part(&target, done, chunk.len()).copy_from(chunk);
            done += chunk.len();
        }
    }
    u64::from(crc)
}

#[allow(clippy::cast_possible_truncation)] // The upper half is defined to be ignored.
const fn low_half(value: u64) -> u32 {
    value as u32
}

/// `count` bytes of `slice` at `at`, which the caller has checked to be inside; empty otherwise.
fn part<'m>(slice: &VolatileSlice<'m>, at: usize, count: usize) -> VolatileSlice<'m> {
    let inside = slice.subslice(at, count);
    debug_assert!(inside.is_ok(), "{at}+{count} of {}", slice.len());
    inside.unwrap_or_else(|_| VolatileSlice::from(&mut [][..]))
}

fn copy_out(device: &VolatileSlice<'_>, incoming: &Segments<'_, '_>) -> u64 {
    let mut at = 0;
    for piece in incoming.pieces() {
        part(device, at, piece.len()).copy_to_volatile_slice(piece);
        at += piece.len();
    }
    0
}

fn copy_in(outgoing: &Segments<'_, '_>, device: &VolatileSlice<'_>) -> u64 {
    let mut at = 0;
    for piece in outgoing.pieces() {
        piece.copy_to_volatile_slice(part(device, at, piece.len()));
        at += piece.len();
    }
    0
}

fn copy_across(outgoing: &Segments<'_, '_>, incoming: &Segments<'_, '_>) -> u64 {
    let mut targets = incoming.pieces();
    let mut target: Option<VolatileSlice<'_>> = None;
    for source in outgoing.pieces() {
        let mut done = 0;
        while done < source.len() {
            let Some(room) = target.take().or_else(|| targets.next()) else {
                return 0;
            };
            let count = room.len().min(source.len() - done);
            part(&source, done, count).copy_to_volatile_slice(part(&room, 0, count));
            done += count;
            if count < room.len() {
                target = Some(part(&room, count, room.len() - count));
            }
        }
    }
    0
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // Lengths here are small.
mod tests;
