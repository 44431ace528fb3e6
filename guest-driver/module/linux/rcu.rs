// SPDX-License-Identifier: GPL-2.0

//! A value that is found through a `static` while its owner publishes it, by readers under RCU.

use core::ptr::{self, NonNull};

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc, ArcBorrow,
        atomic::{Acquire, Atomic, Full},
        rcu,
    },
};

/// A place for a value.
///
/// # Invariants
///
/// `value` is null, or a share in an `Arc<T>` that the [`Publication`] drops a grace period after
/// it has cleared the pointer.
pub(crate) struct Published<T> {
    value: Atomic<*mut T>,
}

impl<T: Send + Sync + 'static> Published<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: Null.
        Self {
            value: Atomic::new(ptr::null_mut()),
        }
    }

    /// The value, while one is published. Any context.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        let value = NonNull::new(self.value.load(Acquire))?;
        // SAFETY: The share is not given up during this critical section, by the type's invariant.
        Some(unsafe { ArcBorrow::from_raw(value.as_ptr().cast_const()) }.into())
    }

    /// Publishes `value` until the result is dropped: `EBUSY` while there is one.
    pub(crate) fn publish(&'static self, value: Arc<T>) -> Result<Publication<T>> {
        let raw = Arc::into_raw(value).cast_mut();
        // INVARIANT: A share, until `Publication::drop`.
        match self.value.cmpxchg(ptr::null_mut(), raw, Full) {
            Ok(_) => Ok(Publication(self)),
            Err(_) => {
                // SAFETY: The share comes from `into_raw` above, and was not published.
                drop(unsafe { Arc::from_raw(raw) });
                Err(EBUSY)
            }
        }
    }
}

/// Keeps a value published. Dropping it may sleep.
///
/// # Invariants
///
/// The place has a share that was published for this object.
pub(crate) struct Publication<T: Send + Sync + 'static>(&'static Published<T>);

impl<T: Send + Sync + 'static> Drop for Publication<T> {
    fn drop(&mut self) {
        // INVARIANT: Null again, a grace period before the share is dropped.
        let value = self.0.value.xchg(ptr::null_mut(), Full);
        // SAFETY: No precondition beyond a context that may sleep.
        unsafe { bindings::synchronize_rcu() };
        // SAFETY: `publish` has put the share there; those that have seen the pointer have shares
        // of their own.
        drop(unsafe { Arc::from_raw(value) });
    }
}
