// SPDX-License-Identifier: GPL-2.0

//! The structures of ioctl calls on their way to user space.

use crate::protocol::{DeviceInfo, Statistics};
use core::mem::size_of;
use kernel::{
    prelude::*,
    transmute::AsBytes,
    uaccess::{UserPtr, UserSlice},
};

// SAFETY: `repr(C)` integers without padding: the sizes are checked where the types are declared.
unsafe impl AsBytes for DeviceInfo {}
// SAFETY: As above.
unsafe impl AsBytes for Statistics {}

/// Copies `value` to user space; `EFAULT` if the address is bad. May sleep.
pub(crate) fn answer<T: AsBytes>(value: &T, address: usize) -> Result<isize> {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>()).writer().write(value)?;
    Ok(0)
}
