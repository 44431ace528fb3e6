// SPDX-License-Identifier: GPL-2.0

//! Accounting of memory that is held for good: `RLIMIT_MEMLOCK` of a user, `VmPin` of a process.
//!
//! The limit is that of the user (`user_struct.locked_vm`), as for io_uring and in the same count,
//! and not that of an address space (`account_locked_vm`): a child has an address space of its own,
//! and so has a program that is executed, but what they hold stays their user's.

use core::ptr::NonNull;

use kernel::{bindings, error::to_result, mm::Mm, prelude::*, sync::aref::ARef};

use crate::linux::{
    bindings::{
        vdma_charge_user, vdma_count_pinned, vdma_get_user, vdma_put_user, vdma_uncharge_user,
    },
    capability,
};

/// Pages that are charged to a user.
///
/// # Invariants
///
/// This object has a reference to `user`, to whom `pages` are charged for it.
struct UserCharge {
    user: NonNull<bindings::user_struct>,
    pages: usize,
}

// SAFETY: Users are shared by all tasks: this is a counted reference, and the charge is atomic.
unsafe impl Send for UserCharge {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for UserCharge {}

impl UserCharge {
    /// Charges `pages` to the current task's user: `ENOMEM` beyond the limit of the task.
    fn new(pages: usize) -> Result<Self> {
        // SAFETY: No precondition: a task always has a user.
        let user = NonNull::new(unsafe { vdma_get_user() }).ok_or(EFAULT)?;
        // SAFETY: There is a reference to the user.
        let charged = to_result(unsafe { vdma_charge_user(user.as_ptr(), pages) });
        // INVARIANT: The reference was taken above; if nothing was charged there is nothing to
        // give back.
        let charge = Self {
            user,
            pages: if charged.is_ok() { pages } else { 0 },
        };
        charged.map(|()| charge)
    }
}

impl Drop for UserCharge {
    fn drop(&mut self) {
        // SAFETY: This object has the reference, and so much was charged, by the type's invariant.
        unsafe {
            vdma_uncharge_user(self.user.as_ptr(), self.pages);
            vdma_put_user(self.user.as_ptr());
        }
    }
}

/// Pages that are charged to `RLIMIT_MEMLOCK` of a user, and shown as those of a process (`VmPin`),
/// until dropped. Dropped in process context.
///
/// # Invariants
///
/// `pages` are counted in `mm` for this object.
pub(crate) struct LockedPages {
    /// `None` for a task that the limit does not bind.
    _charge: Option<UserCharge>,
    mm: ARef<Mm>,
    pages: usize,
}

impl LockedPages {
    /// Charges `pages` to the current task's user: `ENOMEM` beyond the limit, which a task with
    /// `CAP_IPC_LOCK` does not have.
    pub(crate) fn charge(pages: usize) -> Result<Self> {
        let mm: ARef<Mm> = kernel::current!()
            .mm()
            .map(|mm| (&**mm).into())
            .ok_or(EFAULT)?;
        let charge = if capability::may_lock_memory() {
            None
        } else {
            Some(UserCharge::new(pages)?)
        };
        // SAFETY: The address space is held.
        unsafe { vdma_count_pinned(mm.as_raw(), pages as isize) };
        // INVARIANT: Counted above.
        Ok(Self {
            _charge: charge,
            mm,
            pages,
        })
    }
}

impl Drop for LockedPages {
    fn drop(&mut self) {
        // SAFETY: The address space is held, and the pages are counted there, by the type's
        // invariant.
        unsafe { vdma_count_pinned(self.mm.as_raw(), -(self.pages as isize)) };
    }
}
