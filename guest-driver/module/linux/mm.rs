// SPDX-License-Identifier: GPL-2.0

//! Accounting of memory that is pinned for good: `account_locked_vm`.

use kernel::{bindings, error::to_result, mm::Mm, prelude::*, sync::aref::ARef};

/// Pages that are charged to `RLIMIT_MEMLOCK` of an address space, until dropped. Dropped in
/// process context.
///
/// # Invariants
///
/// `pages` are charged to `mm` for this object.
pub(crate) struct LockedPages {
    mm: ARef<Mm>,
    pages: usize,
}

impl LockedPages {
    /// Charges `pages` to the current task's address space: `ENOMEM` beyond the limit. May sleep.
    pub(crate) fn charge(pages: usize) -> Result<Self> {
        let mm: ARef<Mm> = kernel::current!()
            .mm()
            .map(|mm| (&**mm).into())
            .ok_or(EFAULT)?;
        // SAFETY: The address space is held.
        to_result(unsafe { bindings::account_locked_vm(mm.as_raw(), pages, true) })?;
        // INVARIANT: Charged above.
        Ok(Self { mm, pages })
    }
}

impl Drop for LockedPages {
    fn drop(&mut self) {
        // SAFETY: The address space is held, and so much was charged to it, by the type's
        // invariant. Giving back does not fail.
        unsafe { bindings::account_locked_vm(self.mm.as_raw(), self.pages, false) };
    }
}
