// SPDX-License-Identifier: GPL-2.0

//! Which structures of the protocol are copied as bytes, to and from user space and the device.

use kernel::transmute::{AsBytes, FromBytes};

use crate::protocol::{
    Allocation, Batch, Choice, Command, DeviceInfo, ExplainedPage, Explanation, Registration,
    RequestHeader, Response, Statistics, Trace, TraceHeader, TraceRecord,
};

macro_rules! plain {
    ($($name:ident),* $(,)?) => {
        $(
            // SAFETY: The protocol declares it as `repr(C)` integers, and checks at compile time
            // that the sizes add up: there is no padding.
            unsafe impl AsBytes for $name {}
            // SAFETY: It consists of integers, which any bytes are.
            unsafe impl FromBytes for $name {}
        )*
    };
}
plain!(
    Allocation,
    Batch,
    Choice,
    Command,
    DeviceInfo,
    ExplainedPage,
    Explanation,
    Registration,
    RequestHeader,
    Response,
    Statistics,
    Trace,
    TraceHeader,
    TraceRecord,
);
