//! The operations of the device that read and write cannot express.

use std::{io, os::fd::AsFd};

use rustix::ioctl::{Opcode, Updater, ioctl};
use vdma_protocol::{
    BATCH_MAX, Batch, COMMAND_INCOMING_BUFFER, COMMAND_OUTGOING_BUFFER, Command, IOCTL_RUN,
    IOCTL_RUN_BATCH, Operation,
};

use crate::{Device, Error};

/// Data that the device reads.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Memory of the process, pinned while the operation runs.
    Slice(&'a [u8]),
    /// A range of a buffer, by its id.
    Buffer {
        /// Id that the driver gave the buffer.
        id: u32,
        /// Offset of the first byte in the buffer.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
}

/// Data that the device writes.
#[derive(Debug)]
pub enum Target<'a> {
    /// Memory of the process, pinned while the operation runs.
    Slice(&'a mut [u8]),
    /// A range of a buffer, by its id.
    Buffer {
        /// Id that the driver gave the buffer.
        id: u32,
        /// Offset of the first byte in the buffer.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
}

impl<'a> From<&'a [u8]> for Source<'a> {
    fn from(slice: &'a [u8]) -> Self {
        Self::Slice(slice)
    }
}

impl<'a> From<&'a mut [u8]> for Target<'a> {
    fn from(slice: &'a mut [u8]) -> Self {
        Self::Slice(slice)
    }
}

/// The data of an operation.
enum Data<'a> {
    /// The operation has none; it works on `length` bytes of device memory.
    None {
        /// Bytes to work on.
        length: u64,
    },
    Outgoing(Source<'a>),
    Incoming(Target<'a>),
    Both(Source<'a>, Target<'a>),
}

impl Data<'_> {
    /// Whether there are outgoing, and incoming data.
    fn parts(&self) -> (bool, bool) {
        match self {
            Self::None { .. } => (false, false),
            Self::Outgoing(_) => (true, false),
            Self::Incoming(_) => (false, true),
            Self::Both(..) => (true, true),
        }
    }
}

/// Fills in what the device reads; returns its length.
fn set_source(command: &mut Command, source: &Source<'_>) -> u64 {
    match *source {
        Source::Slice(slice) => {
            command.outgoing = slice.as_ptr() as u64;
            slice.len() as u64
        }
        Source::Buffer { id, offset, length } => {
            command.flags |= COMMAND_OUTGOING_BUFFER;
            command.outgoing_buffer = id;
            command.outgoing = offset;
            length
        }
    }
}

/// Fills in what the device writes; returns its length.
fn set_target(command: &mut Command, target: &mut Target<'_>) -> u64 {
    match target {
        Target::Slice(slice) => {
            command.incoming = slice.as_mut_ptr() as u64;
            slice.len() as u64
        }
        Target::Buffer { id, offset, length } => {
            command.flags |= COMMAND_INCOMING_BUFFER;
            command.incoming_buffer = *id;
            command.incoming = *offset;
            *length
        }
    }
}

/// The bytes that a command worked on.
///
/// # Errors
///
/// The error that the driver filled in.
pub fn outcome(command: &Command) -> io::Result<u64> {
    u64::try_from(command.result).map_err(|_| {
        let code = i32::try_from(-command.result).unwrap_or(i32::MAX);
        io::Error::from_raw_os_error(code)
    })
}

impl Device {
    /// Runs `command`, and fills in its results.
    ///
    /// # Safety
    ///
    /// Addresses in the command are those of memory that the device may read (`outgoing`) and write
    /// (`incoming`), as far as `length` goes.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] when the command was not run. Its own outcome is in it: see [`outcome`].
    pub unsafe fn run(&self, command: &mut Command) -> Result<(), Error> {
        // SAFETY: The driver reads and writes a `Command`; the caller vouches for the rest.
        let call = unsafe { Updater::<{ IOCTL_RUN as Opcode }, Command>::new(command) };
        // SAFETY: The structure of the call stays borrowed until it returns.
        unsafe { ioctl(self.file().as_fd(), call) }
            .map_err(Into::into)
            .map_err(self.error("ioctl RUN"))
    }

    /// Runs all of `commands` at once, at most 256, and fills in their results.
    ///
    /// # Safety
    ///
    /// As for [`Device::run`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`] when they were not run.
    pub unsafe fn run_batch(&self, commands: &mut [Command]) -> Result<(), Error> {
        let count = u32::try_from(commands.len())
            .ok()
            .filter(|count| *count <= BATCH_MAX)
            .ok_or(Error::TooManyCommands {
                count: commands.len(),
            })?;
        let mut batch = Batch {
            commands: commands.as_mut_ptr() as u64,
            count,
            done: 0,
        };
        // SAFETY: The driver reads and writes a `Batch`, and the commands behind it, which are
        // borrowed; the caller vouches for the rest.
        let call = unsafe { Updater::<{ IOCTL_RUN_BATCH as Opcode }, Batch>::new(&mut batch) };
        // SAFETY: The structure of the call stays borrowed until it returns.
        unsafe { ioctl(self.file().as_fd(), call) }
            .map_err(Into::into)
            .map_err(self.error("ioctl RUN_BATCH"))
    }

    /// Runs one operation on the data that it has, and fails unless all of it is done.
    fn operate(
        &self,
        operation: Operation,
        [offset, argument]: [u64; 2],
        data: Data<'_>,
    ) -> Result<Command, Error> {
        let mut command = Command {
            operation: operation.code(),
            offset,
            argument,
            ..Command::default()
        };
        let shape = operation.shape();
        debug_assert_eq!(
            data.parts(),
            (shape.outgoing, shape.incoming),
            "{operation:?}"
        );
        command.length = match data {
            Data::None { length } => length,
            Data::Outgoing(source) => set_source(&mut command, &source),
            Data::Incoming(mut target) => set_target(&mut command, &mut target),
            Data::Both(source, mut target) => {
                let from = set_source(&mut command, &source);
                let to = set_target(&mut command, &mut target);
                if from != to {
                    return Err(Error::Lengths { from, to });
                }
                from
            }
        };
        let call = operation.name();
        // SAFETY: The addresses come from slices that are borrowed as the operation needs them, and
        // the driver does not return before the device is done, unless the process is killed.
        unsafe { self.run(&mut command) }?;
        let bytes = outcome(&command).map_err(self.error(call))?;
        if bytes < command.length {
            return Err(Error::Short {
                path: self.path().to_owned(),
                call,
                bytes,
                length: command.length,
            });
        }
        Ok(command)
    }

    /// Sends a request that does nothing, and waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn nop(&self) -> Result<(), Error> {
        self.operate(Operation::Nop, [0, 0], Data::None { length: 0 })
            .map(drop)
    }

    /// Reads device memory at `offset`, and returns the CRC32C of what was read.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn read_crc32c<'a>(
        &self,
        offset: u64,
        target: impl Into<Target<'a>>,
    ) -> Result<u32, Error> {
        self.operate(
            Operation::ReadCrc32c,
            [offset, 0],
            Data::Incoming(target.into()),
        )
        .map(checksum)
    }

    /// Writes device memory at `offset`, and returns the CRC32C of what was written.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn write_crc32c<'a>(
        &self,
        offset: u64,
        source: impl Into<Source<'a>>,
    ) -> Result<u32, Error> {
        self.operate(
            Operation::WriteCrc32c,
            [offset, 0],
            Data::Outgoing(source.into()),
        )
        .map(checksum)
    }

    /// Reads device memory at `offset` to memory of the process or of a buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn read<'a>(&self, offset: u64, target: impl Into<Target<'a>>) -> Result<(), Error> {
        self.operate(Operation::Read, [offset, 0], Data::Incoming(target.into()))
            .map(drop)
    }

    /// Writes memory of the process or of a buffer to device memory at `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn write<'a>(&self, offset: u64, source: impl Into<Source<'a>>) -> Result<(), Error> {
        self.operate(Operation::Write, [offset, 0], Data::Outgoing(source.into()))
            .map(drop)
    }

    /// Copies memory to memory of the same length, through the device.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`], [`Error::Lengths`].
    pub fn copy<'a, 'b>(
        &self,
        source: impl Into<Source<'a>>,
        target: impl Into<Target<'b>>,
    ) -> Result<(), Error> {
        let data = Data::Both(source.into(), target.into());
        self.operate(Operation::Copy, [0, 0], data).map(drop)
    }

    /// Copies `length` bytes of device memory from `from` to `to`; the ranges may overlap.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn move_within(&self, to: u64, from: u64, length: u64) -> Result<(), Error> {
        self.operate(Operation::Move, [to, from], Data::None { length })
            .map(drop)
    }

    /// Fills device memory with the eight little-endian bytes of `pattern`, repeated.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn fill(&self, offset: u64, length: u64, pattern: u64) -> Result<(), Error> {
        self.operate(Operation::Fill, [offset, pattern], Data::None { length })
            .map(drop)
    }

    /// Fills memory with the eight little-endian bytes of `pattern`, repeated.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn fill_memory<'a>(
        &self,
        target: impl Into<Target<'a>>,
        pattern: u64,
    ) -> Result<(), Error> {
        self.operate(
            Operation::FillGuest,
            [0, pattern],
            Data::Incoming(target.into()),
        )
        .map(drop)
    }

    /// Compares memory with device memory at `offset`: the index of the first byte that differs.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn compare<'a>(
        &self,
        offset: u64,
        source: impl Into<Source<'a>>,
    ) -> Result<Option<u64>, Error> {
        let data = Data::Outgoing(source.into());
        let command = self.operate(Operation::Compare, [offset, 0], data)?;
        Ok(Some(command.value).filter(|index| *index < command.length))
    }

    /// The CRC32C of device memory; `seed` is the checksum of the bytes before it, 0 if there are
    /// none.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn crc32c(&self, offset: u64, length: u64, seed: u32) -> Result<u32, Error> {
        self.operate(
            Operation::Crc32c,
            [offset, seed.into()],
            Data::None { length },
        )
        .map(checksum)
    }

    /// The CRC32C of memory; `seed` is the checksum of the bytes before it, 0 if there are none.
    ///
    /// # Errors
    ///
    /// [`Error::Call`], [`Error::Short`].
    pub fn crc32c_of<'a>(&self, source: impl Into<Source<'a>>, seed: u32) -> Result<u32, Error> {
        let data = Data::Outgoing(source.into());
        self.operate(Operation::Crc32cGuest, [0, seed.into()], data)
            .map(checksum)
    }

    /// Zeroes device memory, and frees the host's memory behind whole pages of it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn discard(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.operate(Operation::Discard, [offset, 0], Data::None { length })
            .map(drop)
    }

    /// Makes the effects of operations that completed before durable.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn flush(&self) -> Result<(), Error> {
        self.operate(Operation::Flush, [0, 0], Data::None { length: 0 })
            .map(drop)
    }
}

#[allow(clippy::cast_possible_truncation)] // Checksums have 32 bits.
fn checksum(command: Command) -> u32 {
    command.value as u32
}
