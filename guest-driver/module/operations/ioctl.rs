// SPDX-License-Identifier: GPL-2.0

//! Copies the structures of `ioctl` calls from and to user space.

use core::mem::size_of;

use kernel::{
    prelude::*,
    transmute::{AsBytes, FromBytes},
    uaccess::{UserPtr, UserSlice},
};

use crate::protocol::Choice;

/// Copies `value` to user space; `EFAULT` if the address is bad. May sleep.
pub(crate) fn copy_to_user<T: AsBytes>(value: &T, address: usize) -> Result<isize> {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .writer()
        .write(value)?;
    Ok(0)
}

/// Copies a structure from user space; `EFAULT` if the address is bad. May sleep.
pub(crate) fn copy_from_user<T: FromBytes>(address: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .reader()
        .read()
}

/// Reads the number in a [`Choice`]; `EINVAL` if its reserved field is not zero. May sleep.
pub(crate) fn read_u32(address: usize) -> Result<u32> {
    let choice: Choice = copy_from_user(address)?;
    if choice.reserved != 0 {
        return Err(EINVAL);
    }
    Ok(choice.value)
}
