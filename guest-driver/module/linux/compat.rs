// SPDX-License-Identifier: GPL-2.0

//! Where the kernels that this driver builds on differ.

use core::borrow::Borrow;

use kernel::{bindings, prelude::*};

/// `EOPNOTSUPP`: not among the kernel crate's error codes before 7.3.
pub(crate) fn not_supported() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as i32))
}

/// The value of a module parameter: a reference to it before 7.3.
pub(crate) fn number(value: impl Borrow<u32>) -> u32 {
    *value.borrow()
}
