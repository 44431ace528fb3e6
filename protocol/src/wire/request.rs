// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests and responses (SPEC.md, section 7).
//!
//! A request is one descriptor chain. Its device-readable bytes are a [`RequestHeader`] followed by
//! the outgoing data; its device-writable bytes are a [`Response`] followed by the incoming data.
//! How these bytes are spread over descriptors means nothing (virtio 1.2, section 2.7.4).

use core::mem::{offset_of, size_of};

use super::{Le16, Le32, Le64, endian::le64_at};

/// The operation that a request asks for: the code in [`RequestHeader::operation`] (SPEC.md,
/// section 7.3).
///
/// `offset` and `length` are the header's fields; "outgoing" is the device-readable data,
/// "incoming" the device-writable data. Unless said otherwise both must be empty.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Completes without doing anything.
    Nop = 0,
    /// Copies `length` bytes of device memory at `offset` to the incoming data.
    Read = 1,
    /// Copies `length` bytes of outgoing data to device memory at `offset`.
    Write = 2,
    /// Copies `length` bytes from outgoing to incoming data (guest memory to guest memory).
    Copy = 3,
    /// Copies `length` bytes of device memory from offset `argument` to `offset`, as `memmove`.
    Move = 4,
    /// Fills device memory with the eight little-endian bytes of `argument`, repeated from
    /// `offset`.
    Fill = 5,
    /// Fills the incoming data with the eight little-endian bytes of `argument`, repeated.
    FillGuest = 6,
    /// Compares outgoing data with device memory at `offset`; [`Response::value`] is the index of
    /// the first differing byte, or `length` when all are equal.
    Compare = 7,
    /// CRC32C of `length` bytes of device memory at `offset`, in [`Response::value`]. The low half
    /// of `argument` continues an earlier checksum (0 starts a new one).
    Crc32c = 8,
    /// CRC32C of the outgoing data, otherwise as [`Operation::Crc32c`].
    Crc32cGuest = 9,
    /// [`Operation::Read`] with the CRC32C of the bytes in [`Response::value`].
    ReadCrc32c = 10,
    /// [`Operation::Write`] with the CRC32C of the bytes in [`Response::value`].
    WriteCrc32c = 11,
    /// Makes the effects of requests that completed before durable in the memory file.
    Flush = 12,
    /// Makes `length` bytes at `offset` read as zeroes and gives the memory behind whole pages
    /// back.
    Discard = 13,
}

impl Operation {
    /// Every operation, in the order of the codes.
    pub const ALL: [Self; 14] = [
        Self::Nop,
        Self::Read,
        Self::Write,
        Self::Copy,
        Self::Move,
        Self::Fill,
        Self::FillGuest,
        Self::Compare,
        Self::Crc32c,
        Self::Crc32cGuest,
        Self::ReadCrc32c,
        Self::WriteCrc32c,
        Self::Flush,
        Self::Discard,
    ];

    /// The operation with this code, or `None` for a code that this version does not know.
    #[must_use]
    #[inline]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// The code in [`RequestHeader::operation`].
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The operation's bit in [`super::Config::operations`].
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self as u16
    }

    /// The name used on command lines, in metrics and in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nop => "nop",
            Self::Read => "read",
            Self::Write => "write",
            Self::Copy => "copy",
            Self::Move => "move",
            Self::Fill => "fill",
            Self::FillGuest => "fill-guest",
            Self::Compare => "compare",
            Self::Crc32c => "crc32c",
            Self::Crc32cGuest => "crc32c-guest",
            Self::ReadCrc32c => "read-crc32c",
            Self::WriteCrc32c => "write-crc32c",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// The first bytes of every request (SPEC.md, section 7.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHeader {
    /// Code of an [`Operation`].
    pub operation: Le16,
    /// Zero: no flag is defined. A device answers any other value with [`Status::BAD_FLAGS`].
    pub flags: Le16,
    /// Zero; ignored by the device.
    pub reserved: Le32,
    /// Byte offset in device memory.
    pub offset: Le64,
    /// Bytes to work on; equal to the length of each data part that the operation has.
    pub length: Le64,
    /// A further operand, for the operations that name one.
    pub argument: Le64,
}

const _: () = {
    assert!(size_of::<RequestHeader>() == 32);
    assert!(offset_of!(RequestHeader, flags) == 2);
    assert!(offset_of!(RequestHeader, offset) == 8);
    assert!(offset_of!(RequestHeader, length) == 16);
    assert!(offset_of!(RequestHeader, argument) == 24);
};

impl RequestHeader {
    /// Bytes of a header.
    pub const SIZE: usize = size_of::<Self>();

    /// A header for `operation`.
    #[must_use]
    pub const fn new(operation: Operation, offset: u64, length: u64, argument: u64) -> Self {
        Self {
            operation: Le16::new(operation.code()),
            flags: Le16::new(0),
            reserved: Le32::new(0),
            offset: Le64::new(offset),
            length: Le64::new(length),
            argument: Le64::new(argument),
        }
    }

    /// The header as it stands in memory.
    #[must_use]
    #[inline]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..2].copy_from_slice(&self.operation.get().to_le_bytes());
        bytes[2..4].copy_from_slice(&self.flags.get().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.reserved.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.argument.get().to_le_bytes());
        bytes
    }

    /// Reads a header from the bytes of a request. Any bytes are a header; its fields are checked
    /// where they are used.
    #[must_use]
    #[inline]
    pub fn from_bytes(b: &[u8; Self::SIZE]) -> Self {
        Self {
            operation: Le16::new(u16::from_le_bytes([b[0], b[1]])),
            flags: Le16::new(u16::from_le_bytes([b[2], b[3]])),
            reserved: Le32::new(u32::from_le_bytes([b[4], b[5], b[6], b[7]])),
            offset: le64_at(b, 8),
            length: le64_at(b, 16),
            argument: le64_at(b, 24),
        }
    }
}

/// The outcome of a request: the code in [`Response::status`] (SPEC.md, section 7.6).
///
/// Not an `enum`, for a peer may send any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// Done.
    pub const OK: Self = Self(0);
    /// The device has no operation with this code.
    pub const UNSUPPORTED: Self = Self(1);
    /// A flag is set that the device does not know.
    pub const BAD_FLAGS: Self = Self(2);
    /// `offset` and `length` (or `argument` and `length`) leave device memory.
    pub const BAD_RANGE: Self = Self(3);
    /// A data part is shorter or longer than `length`, stands where the operation has none, or is
    /// over [`super::Config::max_transfer`].
    pub const BAD_LENGTH: Self = Self(4);
    /// A descriptor points outside of the memory that the device can reach.
    pub const BAD_ADDRESS: Self = Self(5);
    /// The operation failed inside the device; how much of it was done is unknown.
    pub const IO_ERROR: Self = Self(6);
    /// The chain is not a request: the header is cut short, or it has too many descriptors.
    pub const BAD_REQUEST: Self = Self(7);
    /// Never sent: a driver writes it before it submits, and so recognizes a response that the
    /// device did not write.
    pub const UNWRITTEN: Self = Self(0xffff);

    /// A one-line description.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::OK => "done",
            Self::UNSUPPORTED => "operation not supported",
            Self::BAD_FLAGS => "unknown flag",
            Self::BAD_RANGE => "range outside of device memory",
            Self::BAD_LENGTH => "data length differs from the request's length",
            Self::BAD_ADDRESS => "descriptor outside of guest memory",
            Self::IO_ERROR => "failed inside the device",
            Self::BAD_REQUEST => "malformed request",
            Self::UNWRITTEN => "response not written",
            _ => "unknown status",
        }
    }
}

/// The first device-writable bytes of every request (SPEC.md, section 7.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// A [`Status`].
    pub status: Le16,
    /// Zero; ignored by the driver.
    pub reserved: Le16,
    /// Data bytes that the operation worked on: `length` with [`Status::OK`], otherwise a count of
    /// bytes that are certain to be done, from the start.
    pub transferred: Le32,
    /// The result of the operations that have one, otherwise zero.
    pub value: Le64,
}

const _: () = {
    assert!(size_of::<Response>() == 16);
    assert!(offset_of!(Response, transferred) == 4);
    assert!(offset_of!(Response, value) == 8);
};

impl Response {
    /// Bytes of a response.
    pub const SIZE: usize = size_of::<Self>();

    /// A response with these contents.
    #[must_use]
    pub const fn new(status: Status, transferred: u32, value: u64) -> Self {
        Self {
            status: Le16::new(status.0),
            reserved: Le16::new(0),
            transferred: Le32::new(transferred),
            value: Le64::new(value),
        }
    }

    /// The outcome of the request.
    #[must_use]
    #[inline]
    pub const fn status(&self) -> Status {
        Status(self.status.get())
    }

    /// The response as it stands in memory.
    #[must_use]
    #[inline]
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..2].copy_from_slice(&self.status.get().to_le_bytes());
        bytes[2..4].copy_from_slice(&self.reserved.get().to_le_bytes());
        bytes[4..8].copy_from_slice(&self.transferred.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.value.get().to_le_bytes());
        bytes
    }

    /// Reads a response; any bytes are one.
    #[must_use]
    #[inline]
    pub fn from_bytes(b: &[u8; Self::SIZE]) -> Self {
        Self {
            status: Le16::new(u16::from_le_bytes([b[0], b[1]])),
            reserved: Le16::new(u16::from_le_bytes([b[2], b[3]])),
            transferred: Le32::new(u32::from_le_bytes([b[4], b[5], b[6], b[7]])),
            value: le64_at(b, 8),
        }
    }
}
