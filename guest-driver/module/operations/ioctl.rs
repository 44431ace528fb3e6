// SPDX-License-Identifier: GPL-2.0

//! The structures of ioctl calls on their way from and to user space.

use core::mem::size_of;

use kernel::{
    bindings,
    prelude::*,
    transmute::{AsBytes, FromBytes},
    uaccess::{UserPtr, UserSlice},
};

use crate::protocol::{Allocation, Choice, DeviceInfo, Registration, Statistics, Trace};

/// Structures that may be copied as bytes.
macro_rules! plain {
    ($($name:ident),*) => {
        $(
            // SAFETY: `repr(C)` integers without padding: the sizes are checked where the types are
            // declared.
            unsafe impl AsBytes for $name {}
            // SAFETY: As above; any bytes are integers.
            unsafe impl FromBytes for $name {}
        )*
    };
}
plain!(
    DeviceInfo,
    Statistics,
    Choice,
    Registration,
    Allocation,
    Trace
);

/// Copies `value` to user space; `EFAULT` if the address is bad. May sleep.
pub(crate) fn answer<T: AsBytes>(value: &T, address: usize) -> Result<isize> {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .writer()
        .write(value)?;
    Ok(0)
}

/// Copies a structure from user space; `EFAULT` if the address is bad. May sleep.
pub(crate) fn question<T: FromBytes>(address: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(address), size_of::<T>())
        .reader()
        .read()
}

/// The number in a [`Choice`]; `EINVAL` if what has to be zero is not. May sleep.
pub(crate) fn choice(address: usize) -> Result<u32> {
    let choice: Choice = question(address)?;
    if choice.reserved != 0 {
        return Err(EINVAL);
    }
    Ok(choice.value)
}

/// `EPERM` unless the caller has `CAP_SYS_ADMIN`.
pub(crate) fn require_administrator() -> Result {
    // SAFETY: No precondition.
    if unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) } {
        Ok(())
    } else {
        Err(EPERM)
    }
}
