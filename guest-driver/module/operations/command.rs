// SPDX-License-Identifier: GPL-2.0

//! Commands: operations of the device on behalf of user space, from `ioctl` and io_uring.

use core::mem::{offset_of, size_of};

use kernel::{
    bindings,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    types::Opaque,
    uaccess::{UserPtr, UserSlice},
};

use crate::{
    io::{
        pages::{Buffers, HeldPages},
        transfer::Combine,
    },
    linux::compat,
    observe::counters::Direction,
    operations::buffer::{Buffer, BufferTable},
    protocol::{
        BATCH_MAX, Batch, COMMAND_INCOMING_BUFFER, COMMAND_OUTGOING_BUFFER, Command, Operation,
    },
};

/// Reads a command from user space. May sleep.
pub(crate) fn read(address: u64) -> Result<Command> {
    let address = usize::try_from(address).map_err(|_| EFAULT)?;
    UserSlice::new(UserPtr::from_addr(address), size_of::<Command>())
        .reader()
        .read()
}

/// Writes the results of a command to the structure at `address`: `EFAULT`. May sleep.
pub(crate) fn write_results(address: u64, result: Result<i64>, value: u64) -> Result {
    const { assert!(offset_of!(Command, value) == offset_of!(Command, result) + 8) };
    let at = address
        .checked_add(offset_of!(Command, result) as u64)
        .ok_or(EFAULT)?;
    let at = usize::try_from(at).map_err(|_| EFAULT)?;
    let result = result.unwrap_or_else(|error| error.to_errno().into());
    let mut writer = UserSlice::new(UserPtr::from_addr(at), 16).writer();
    writer.write(&result)?;
    writer.write(&value)
}

/// The commands of a batch in user space.
pub(crate) struct BatchCommands {
    address: u64,
    count: u32,
}

impl BatchCommands {
    /// Reads a batch: `EINVAL` when there are too many. May sleep.
    pub(crate) fn read(address: usize) -> Result<Self> {
        let batch: Batch = UserSlice::new(UserPtr::from_addr(address), size_of::<Batch>())
            .reader()
            .read()?;
        if batch.count > BATCH_MAX {
            return Err(EINVAL);
        }
        Ok(Self {
            address: batch.commands,
            count: batch.count,
        })
    }

    /// Where each of the commands is.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        let begin = self.address;
        (0..u64::from(self.count))
            .map(move |index| begin.saturating_add(index * size_of::<Command>() as u64))
    }

    /// Fills in how many were run.
    pub(crate) fn write_done(address: usize, done: u32) -> Result {
        let at = address.checked_add(offset_of!(Batch, done)).ok_or(EFAULT)?;
        UserSlice::new(UserPtr::from_addr(at), 4)
            .writer()
            .write(&done)
    }
}

/// What an operation does to device memory and to data.
#[derive(Clone, Copy)]
struct Shape {
    /// The device reads data.
    outgoing: bool,
    /// The device writes data.
    incoming: bool,
    /// `offset` and `length` name device memory.
    range: bool,
    /// The operation changes device memory, or shows it.
    access: Access,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    None,
    Read,
    Write,
    Both,
}

impl Shape {
    fn of(operation: Operation) -> Self {
        use Operation as O;
        let (outgoing, incoming, range, access) = match operation {
            O::Nop | O::Flush => (false, false, false, Access::None),
            O::Read | O::ReadCrc32c => (false, true, true, Access::Read),
            O::Write | O::WriteCrc32c => (true, false, true, Access::Write),
            O::Copy => (true, true, false, Access::None),
            O::Move => (false, false, true, Access::Both),
            O::Fill | O::Discard => (false, false, true, Access::Write),
            O::FillGuest => (false, true, false, Access::None),
            O::Compare => (true, false, true, Access::Read),
            O::Crc32c => (false, false, true, Access::Read),
            O::Crc32cGuest => (true, false, false, Access::None),
        };
        Self {
            outgoing,
            incoming,
            range,
            access,
        }
    }
}

/// Memory that an operation works on.
pub(crate) enum Memory<'a> {
    /// None: the operation has no such data.
    None,
    /// The caller's, to be pinned.
    Caller(Buffers<'a>),
    /// A buffer's, from an offset on.
    Buffer(Arc<Buffer>, usize),
}

/// Limits of one request's data.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) entries: usize,
    pub(crate) entry: usize,
}

impl Limits {
    /// Limits for data that take up to `entries` entries whichever pages they are in.
    pub(crate) fn for_any_pages(self, entries: usize) -> Self {
        // A part that does not begin at a page touches one page more than it has bytes for.
        let bytes = (entries.saturating_sub(1) * PAGE_SIZE).min(self.bytes);
        Self {
            bytes: bytes.max(1),
            entries: entries.max(1),
            ..self
        }
    }
}

impl Memory<'_> {
    /// Puts the pages of the next part, which begins at byte `done`, into `held`, which has none. May
    /// sleep.
    pub(crate) fn take(&mut self, held: &mut HeldPages, done: usize, limits: Limits) -> Result {
        match self {
            Self::None => Ok(()),
            Self::Caller(buffers) => {
                let entries = buffers.page_bound(limits.entries);
                held.take(buffers, limits.bytes, entries, limits.entry)
            }
            Self::Buffer(buffer, offset) => held.take_of(
                buffer,
                *offset + done,
                limits.bytes,
                limits.entries,
                limits.entry,
            ),
        }
    }

    /// Gives the last `bytes` that were taken back, after a failure.
    pub(crate) fn revert(&mut self, bytes: usize) {
        if let Self::Caller(buffers) = self {
            buffers.revert(bytes);
        }
    }

    pub(crate) fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// An operation, whole: it becomes one request or several.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) operation: Operation,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) argument: u64,
}

impl Job {
    /// Whether this, which is a read or a write, is a write.
    pub(crate) fn is_write(&self) -> bool {
        matches!(self.operation, Operation::Write | Operation::WriteCrc32c)
    }

    /// How the parts' values make the value of the whole, and what that begins as.
    pub(crate) fn combination(&self) -> (Combine, u64) {
        match self.operation {
            Operation::Compare => (Combine::FirstDifference, self.length),
            Operation::Crc32c
            | Operation::Crc32cGuest
            | Operation::ReadCrc32c
            | Operation::WriteCrc32c => {
                // The checksum that is continued counts as that of a part before all others.
                let before = crate::protocol::crc32c::shift(self.argument as u32, self.length);
                (Combine::Crc32c(self.length), before.into())
            }
            _ => (Combine::Only, 0),
        }
    }

    /// The argument of the part that begins at byte `done`.
    pub(crate) fn argument_at(&self, done: usize) -> u64 {
        match self.operation {
            // Parts begin anywhere in the pattern.
            Operation::Fill | Operation::FillGuest => {
                self.argument.rotate_right((done % 8 * 8) as u32)
            }
            // The parts' checksums are put together by the driver.
            Operation::Crc32c
            | Operation::Crc32cGuest
            | Operation::ReadCrc32c
            | Operation::WriteCrc32c => 0,
            _ => self.argument,
        }
    }

    /// Bytes of the part, of a job without data, that begins at byte `done`: `limit` at the most where
    /// the operation can be split.
    pub(crate) fn length_of_part(&self, done: usize, limit: usize) -> usize {
        let left = self.length as usize - done;
        match self.operation {
            // Which end it begins with depends on how the ranges overlap.
            Operation::Move => left,
            _ => left.min(limit),
        }
    }

    /// Offset in device memory of the part that begins at byte `done`.
    pub(crate) fn offset_at(&self, done: usize) -> u64 {
        if Shape::of(self.operation).range {
            self.offset + done as u64
        } else {
            self.offset
        }
    }
}

/// What the file that a command came through allows.
#[derive(Clone, Copy)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// A range of the caller's memory as an iterator over its pages, as read and write have it.
pub(crate) struct CallerMemory(Opaque<bindings::iov_iter>);

impl CallerMemory {
    pub(crate) fn empty() -> Self {
        Self(Opaque::uninit())
    }

    /// `length` bytes at `address`, which the device writes (`Read`) or reads (`Write`).
    pub(crate) fn set(
        &mut self,
        direction: Direction,
        address: u64,
        length: usize,
    ) -> Result<Buffers<'_>> {
        let rw = if direction == Direction::Read {
            bindings::ITER_DEST
        } else {
            bindings::ITER_SOURCE
        };
        let address = usize::try_from(address).map_err(|_| EFAULT)?;
        // SAFETY: The iterator is valid for writes; any range may be given.
        kernel::error::to_result(unsafe {
            bindings::import_ubuf(rw as i32, address as *mut _, length, self.0.get())
        })?;
        // SAFETY: The iterator was initialized, and is borrowed for as long as the result lives.
        Ok(unsafe { Buffers::from_raw(self.0.get()) })
    }
}

/// A command that has been checked.
pub(crate) struct Checked<'a> {
    pub(crate) job: Job,
    pub(crate) outgoing: Memory<'a>,
    pub(crate) incoming: Memory<'a>,
}

/// Checks `command`, for a device with `memory_size` bytes and these `operations`.
///
/// `EINVAL` for unknown operations, flags and ranges, `EOPNOTSUPP` for operations that the device does
/// not have, `EBADF` for those that the file is not open for, `ENOENT` for unknown buffers, `EFAULT`.
pub(crate) fn check<'a>(
    command: &Command,
    operations: u64,
    memory_size: u64,
    rights: Rights,
    buffers: &BufferTable,
    scratch: &'a mut [CallerMemory; 2],
) -> Result<Checked<'a>> {
    let operation = Operation::from_code(command.operation).ok_or(EINVAL)?;
    let known = COMMAND_OUTGOING_BUFFER | COMMAND_INCOMING_BUFFER;
    if command.flags & !known != 0 || command.reserved != 0 {
        return Err(EINVAL);
    }
    if operations & operation.bit() == 0 {
        return Err(compat::not_supported());
    }
    let shape = Shape::of(operation);
    let reads = matches!(shape.access, Access::Read | Access::Both);
    let writes = matches!(shape.access, Access::Write | Access::Both);
    if reads && !rights.read || writes && !rights.write {
        return Err(EBADF);
    }
    let within = |offset: u64| {
        offset
            .checked_add(command.length)
            .is_some_and(|end| end <= memory_size)
    };
    if shape.range && !within(command.offset)
        || operation == Operation::Move && !within(command.argument)
    {
        return Err(EINVAL);
    }
    // Outcomes are reported as signed numbers.
    let length = usize::try_from(command.length).map_err(|_| EINVAL)?;
    if length > isize::MAX as usize {
        return Err(EINVAL);
    }
    let named = |flag: u16, id: u32, offset: u64| -> Result<Option<(Arc<Buffer>, usize)>> {
        if command.flags & flag == 0 {
            return Ok(None);
        }
        let buffer = buffers.get(id)?;
        let offset = usize::try_from(offset).map_err(|_| EINVAL)?;
        if offset
            .checked_add(length)
            .is_none_or(|end| end > buffer.length())
        {
            return Err(EINVAL);
        }
        Ok(Some((buffer, offset)))
    };
    let [first, second] = scratch;
    let memory = |has: bool,
                  flag: u16,
                  id: u32,
                  place: u64,
                  direction: Direction,
                  slot: &'a mut CallerMemory|
     -> Result<Memory<'a>> {
        if !has {
            return Ok(Memory::None);
        }
        match named(flag, id, place)? {
            Some((buffer, offset)) => Ok(Memory::Buffer(buffer, offset)),
            None => {
                let buffers = slot.set(direction, place, length)?;
                // The kernel takes less than 2 GiB of a caller's memory at a time.
                if buffers.len() < length {
                    return Err(EINVAL);
                }
                Ok(Memory::Caller(buffers))
            }
        }
    };
    let outgoing = memory(
        shape.outgoing,
        COMMAND_OUTGOING_BUFFER,
        command.outgoing_buffer,
        command.outgoing,
        Direction::Write,
        first,
    )?;
    let incoming = memory(
        shape.incoming,
        COMMAND_INCOMING_BUFFER,
        command.incoming_buffer,
        command.incoming,
        Direction::Read,
        second,
    )?;
    let job = Job {
        operation,
        offset: command.offset,
        length: command.length,
        argument: command.argument,
    };
    Ok(Checked {
        job,
        outgoing,
        incoming,
    })
}
