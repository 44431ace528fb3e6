// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Shapes of the operations (the table of SPEC.md, section 7.3): which data each has, which ranges
//! of device memory it touches, and what its result is.

use super::{Operation, RequestHeader};

/// What an operation does to a range of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The operation has no such range.
    None,
    /// The operation reads the range.
    Read,
    /// The operation writes the range.
    Write,
}

/// The meaning of [`RequestHeader::argument`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// The operation ignores it.
    Ignored,
    /// Offset of a second range of device memory, which the operation reads.
    Offset,
    /// Eight bytes that are repeated.
    Pattern,
    /// The lower half is the CRC32C of the bytes before.
    Checksum,
}

/// The meaning of [`super::Response::value`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResultValue {
    /// Always 0.
    None,
    /// Index of the first difference, or `length`. The result of a whole is the first of its parts'
    /// that is below the part's length, counted from the beginning of the whole.
    FirstDifference,
    /// A CRC32C. The result of a whole is combined from its parts' with [`super::crc32c::shift`].
    Checksum,
}

/// What an operation needs and does, apart from the work itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The request has outgoing data (which the device reads), of `length` bytes.
    pub outgoing: bool,
    /// The request has incoming data (which the device writes), of `length` bytes.
    pub incoming: bool,
    /// What happens to the `length` bytes of device memory at `offset`.
    pub at_offset: Access,
    /// The meaning of `argument`.
    pub argument: Argument,
    /// The meaning of the response's `value`.
    pub value: ResultValue,
    /// A longer operation may be carried out as several requests, in any order.
    pub divisible: bool,
}

impl Shape {
    /// An operation that ignores all of its operands.
    const EMPTY: Self = Self {
        outgoing: false,
        incoming: false,
        at_offset: Access::None,
        argument: Argument::Ignored,
        value: ResultValue::None,
        divisible: true,
    };

    const fn of(operation: Operation) -> Self {
        match operation {
            Operation::Nop | Operation::Flush => Self::EMPTY,
            Operation::Read => Self {
                incoming: true,
                at_offset: Access::Read,
                ..Self::EMPTY
            },
            Operation::Write => Self {
                outgoing: true,
                at_offset: Access::Write,
                ..Self::EMPTY
            },
            Operation::Copy => Self {
                outgoing: true,
                incoming: true,
                ..Self::EMPTY
            },
            Operation::Move => Self {
                at_offset: Access::Write,
                argument: Argument::Offset,
                // The end that a move begins with depends on how the whole ranges overlap.
                divisible: false,
                ..Self::EMPTY
            },
            Operation::Fill => Self {
                at_offset: Access::Write,
                argument: Argument::Pattern,
                ..Self::EMPTY
            },
            Operation::FillGuest => Self {
                incoming: true,
                argument: Argument::Pattern,
                ..Self::EMPTY
            },
            Operation::Compare => Self {
                outgoing: true,
                at_offset: Access::Read,
                value: ResultValue::FirstDifference,
                ..Self::EMPTY
            },
            Operation::Crc32c => Self {
                at_offset: Access::Read,
                argument: Argument::Checksum,
                value: ResultValue::Checksum,
                ..Self::EMPTY
            },
            Operation::Crc32cGuest => Self {
                outgoing: true,
                argument: Argument::Checksum,
                value: ResultValue::Checksum,
                ..Self::EMPTY
            },
            Operation::ReadCrc32c => Self {
                incoming: true,
                at_offset: Access::Read,
                argument: Argument::Checksum,
                value: ResultValue::Checksum,
                ..Self::EMPTY
            },
            Operation::WriteCrc32c => Self {
                outgoing: true,
                at_offset: Access::Write,
                argument: Argument::Checksum,
                value: ResultValue::Checksum,
                ..Self::EMPTY
            },
            Operation::Discard => Self {
                at_offset: Access::Write,
                ..Self::EMPTY
            },
        }
    }

    /// Whether `offset` and `length` name a range of device memory.
    #[must_use]
    #[inline]
    pub const fn has_range(&self) -> bool {
        !matches!(self.at_offset, Access::None)
    }

    /// Whether `argument` and `length` name a range of device memory.
    #[must_use]
    #[inline]
    pub const fn has_second_range(&self) -> bool {
        matches!(self.argument, Argument::Offset)
    }

    /// Whether `length` has a meaning: the operation has data, or a range of device memory.
    #[must_use]
    #[inline]
    pub const fn has_length(&self) -> bool {
        self.outgoing || self.incoming || self.has_range() || self.has_second_range()
    }

    /// Whether bytes of device memory reach the driver or other device memory.
    #[must_use]
    #[inline]
    pub const fn reads_device_memory(&self) -> bool {
        matches!(self.at_offset, Access::Read) || self.has_second_range()
    }

    /// Whether device memory changes.
    #[must_use]
    #[inline]
    pub const fn writes_device_memory(&self) -> bool {
        matches!(self.at_offset, Access::Write)
    }

    /// Where the ranges of device memory of a request with this shape begin; each has `length`
    /// bytes.
    #[must_use]
    #[inline]
    pub const fn ranges(&self, header: &RequestHeader) -> [Option<u64>; 2] {
        [
            if self.has_range() {
                Some(header.offset.get())
            } else {
                None
            },
            if self.has_second_range() {
                Some(header.argument.get())
            } else {
                None
            },
        ]
    }

    /// The lengths that the outgoing and the incoming data of a request of `length` bytes must
    /// have.
    #[must_use]
    #[inline]
    pub const fn data_lengths(&self, length: u64) -> (u64, u64) {
        (
            if self.outgoing { length } else { 0 },
            if self.incoming { length } else { 0 },
        )
    }
}

impl Operation {
    /// The operation's shape.
    #[must_use]
    #[inline]
    pub const fn shape(self) -> Shape {
        SHAPES[self as usize]
    }
}

/// The shape of each operation, by its code.
const SHAPES: [Shape; Operation::ALL.len()] = {
    let mut shapes = [Shape::EMPTY; Operation::ALL.len()];
    let mut code = 0;
    while code < shapes.len() {
        shapes[code] = Shape::of(Operation::ALL[code]);
        code += 1;
    }
    shapes
};
