// SPDX-License-Identifier: GPL-2.0

//! Commands: operations of the device on behalf of user space, from `ioctl` and io_uring.

use core::mem::{offset_of, size_of};

use kernel::{
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

use crate::{
    io::{
        device::Vdma,
        queue::WhenFull,
        submit::{DmaMemory, DmaOperation, Mode},
        transfer::{Transfer, TransferTarget},
    },
    linux::{
        compat,
        iov_iter::{IterDirection, UserRange},
        slab::SlabArc,
        uring_cmd::CommandOutcome,
        wait::fatal_signal_pending,
    },
    observe::Observer,
    operations::buffer::BufferTable,
    protocol::{
        BATCH_MAX, Batch, COMMAND_INCOMING_BUFFER, COMMAND_OUTGOING_BUFFER, Command, Operation,
        Shape,
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

    /// Writes how many were run to the batch at `address`.
    pub(crate) fn write_done(address: usize, done: u32) -> Result {
        let at = address.checked_add(offset_of!(Batch, done)).ok_or(EFAULT)?;
        UserSlice::new(UserPtr::from_addr(at), 4)
            .writer()
            .write(&done)
    }
}

/// The access that the file of a command was opened for.
#[derive(Clone, Copy)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// Data of a command on one side of the device.
struct Side {
    direction: IterDirection,
    /// The buffer that the data are in; otherwise they are in the caller's memory.
    buffer: Option<u32>,
    /// Where they begin: an offset in the buffer, or an address.
    start: u64,
    length: usize,
}

/// What the commands of an open file work with.
pub(crate) struct CommandContext<'a> {
    pub(crate) device: &'a Vdma,
    pub(crate) observer: &'a Arc<Observer>,
    pub(crate) buffers: &'a BufferTable,
    pub(crate) rights: Rights,
}

impl<'a> CommandContext<'a> {
    /// Submits the command at `address` in user space.
    ///
    /// `EINVAL` for unknown operations, flags and ranges, `EOPNOTSUPP` for operations that the
    /// device does not have, `EBADF` for those that the file is not open for, `ENOENT` for unknown
    /// buffers, `EFAULT`; `EAGAIN` for a non-blocking caller that would have to wait. On failure
    /// `target` remains the caller's.
    pub(crate) fn start(
        &self,
        address: u64,
        target: &mut Option<TransferTarget>,
        when_full: WhenFull,
    ) -> Result<SlabArc<Transfer>> {
        let command: Command = read(address)?;
        let mut scratch = [UserRange::new(), UserRange::new()];
        let operation = self.check(&command, &mut scratch)?;
        // A non-blocking caller must not wait half-way either.
        if when_full == WhenFull::Fail && !self.device.fits_one_request(&operation) {
            return Err(EAGAIN);
        }
        let mode = if target.is_some() {
            Mode::Asynchronous
        } else {
            Mode::Sleep
        };
        self.device
            .submit(self.observer, operation, target, mode, when_full)
            .map(|submitted| submitted.transfer)
    }

    /// Runs the command at `address` in user space, and writes its results there.
    pub(crate) fn run(&self, address: usize) -> Result<isize> {
        let address = address as u64;
        let transfer = self.start(address, &mut None, WhenFull::Wait)?;
        let (result, value) = wait_for(&transfer)?;
        write_results(address, result, value)?;
        Ok(0)
    }

    /// Runs the batch of commands at `address` in user space.
    pub(crate) fn run_batch(&self, address: usize) -> Result<isize> {
        let commands = BatchCommands::read(address)?;
        let mut started = KVVec::new();
        for address in commands.addresses() {
            if fatal_signal_pending() {
                break;
            }
            started.push(
                (address, self.start(address, &mut None, WhenFull::Wait)),
                GFP_KERNEL_ACCOUNT,
            )?;
        }
        let mut done = 0;
        for (address, started) in &started {
            let (result, value) = match started {
                Ok(transfer) => wait_for(transfer)?,
                Err(error) => (Err(*error), 0),
            };
            write_results(*address, result, value)?;
            done += 1;
        }
        BatchCommands::write_done(address, done)?;
        Ok(0)
    }

    /// Checks `command`, and finds the memory that it names; see [`CommandContext::start`] for the
    /// errors.
    fn check<'s>(
        &self,
        command: &Command,
        scratch: &'s mut [UserRange; 2],
    ) -> Result<DmaOperation<'s>> {
        let operation = Operation::from_code(command.operation).ok_or(EINVAL)?;
        let known = COMMAND_OUTGOING_BUFFER | COMMAND_INCOMING_BUFFER;
        if command.flags & !known != 0 || command.reserved != 0 {
            return Err(EINVAL);
        }
        let shape = operation.shape();
        self.check_permitted(operation, shape)?;
        self.check_ranges(command, shape)?;
        // An operation that ignores its length must not become as many requests as that takes.
        let length = if shape.has_length() {
            command.length
        } else {
            0
        };
        // Results are reported as signed numbers.
        let length = usize::try_from(length).map_err(|_| EINVAL)?;
        if length > isize::MAX as usize {
            return Err(EINVAL);
        }
        let named = |flag: u16, id: u32| (command.flags & flag != 0).then_some(id);
        let [outgoing, incoming] = [
            shape.outgoing.then(|| Side {
                direction: IterDirection::Source,
                buffer: named(COMMAND_OUTGOING_BUFFER, command.outgoing_buffer),
                start: command.outgoing,
                length,
            }),
            shape.incoming.then(|| Side {
                direction: IterDirection::Dest,
                buffer: named(COMMAND_INCOMING_BUFFER, command.incoming_buffer),
                start: command.incoming,
                length,
            }),
        ];
        let [first, second] = scratch;
        Ok(DmaOperation {
            operation,
            offset: command.offset,
            length: length as u64,
            argument: command.argument,
            verified: false,
            outgoing: self.memory(outgoing, first)?,
            incoming: self.memory(incoming, second)?,
        })
    }

    /// Whether the device has the operation, and the file may be used for it.
    fn check_permitted(&self, operation: Operation, shape: Shape) -> Result {
        if self.device.info().operations & operation.bit() == 0 {
            return Err(compat::not_supported());
        }
        if shape.reads_device_memory() && !self.rights.read
            || shape.writes_device_memory() && !self.rights.write
        {
            return Err(EBADF);
        }
        Ok(())
    }

    /// Whether the ranges that the command names are in device memory.
    fn check_ranges(&self, command: &Command, shape: Shape) -> Result {
        let is_outside = |offset: u64| {
            offset
                .checked_add(command.length)
                .is_none_or(|end| end > self.device.memory_size())
        };
        if shape.has_range() && is_outside(command.offset)
            || shape.has_second_range() && is_outside(command.argument)
        {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// The memory with the data of one side, of a caller's in `slot`.
    fn memory<'s>(&self, side: Option<Side>, slot: &'s mut UserRange) -> Result<DmaMemory<'s>> {
        let Some(side) = side else {
            return Ok(DmaMemory::None);
        };
        let Some(id) = side.buffer else {
            let buffers = slot.set(side.direction, side.start, side.length)?;
            // The kernel takes less than 2 GiB of a caller's memory at a time.
            if buffers.len() < side.length {
                return Err(EINVAL);
            }
            return Ok(DmaMemory::Caller(buffers));
        };
        let buffer = self.buffers.get(id)?;
        let offset = usize::try_from(side.start).map_err(|_| EINVAL)?;
        if offset
            .checked_add(side.length)
            .is_none_or(|end| end > buffer.length())
        {
            return Err(EINVAL);
        }
        Ok(DmaMemory::Buffer(buffer, offset))
    }
}

impl CommandOutcome for SlabArc<Transfer> {
    fn deliver(self, address: u64, has_memory: bool) -> (Result<i64>, u64) {
        let mut result = self.result().map(|bytes| bytes as i64);
        let value = self.value();
        if has_memory {
            if let Err(error) = write_results(address, result, value) {
                result = Err(error);
            }
        }
        (result, value)
    }
}

/// Waits for a command, and returns its result and value; a fatal signal ends the wait with
/// `EINTR`.
fn wait_for(transfer: &Transfer) -> Result<(Result<i64>, u64)> {
    // The device must not write to memory that the caller believes to have back.
    transfer.wait_killable()?;
    let result = transfer.result().map(|bytes| bytes as i64);
    Ok((result, transfer.value()))
}
