// SPDX-License-Identifier: GPL-2.0

//! A spin lock that is also taken in interrupt context: `spin_lock_irqsave`.

use kernel::{
    bindings,
    ffi::{c_char, c_ulong},
    sync::lock::{Backend, Lock},
};

/// A spin lock that keeps the interrupts of this CPU off while it is held.
pub(crate) type IrqSpinLock<T> = Lock<T, IrqSaveBackend>;

/// `spinlock_t`, locked with `spin_lock_irqsave`.
pub(crate) struct IrqSaveBackend;

#[cfg(CONFIG_PREEMPT_RT)]
compile_error!("spinlock_t does not begin with a raw_spinlock_t on PREEMPT_RT");

fn raw(lock: *mut bindings::spinlock_t) -> *mut bindings::raw_spinlock_t {
    // `struct spinlock` begins with its raw lock (include/linux/spinlock_types.h; no PREEMPT_RT).
    lock.cast()
}

// SAFETY: The kernel's spin lock provides the mutual exclusion; `relock` is the default, which
// locks again in the same way and stores the new interrupt state.
unsafe impl Backend for IrqSaveBackend {
    type State = bindings::spinlock_t;
    type GuardState = c_ulong;

    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: `ptr` is valid for writes, `name` and `key` live on, by the trait's contract.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: `ptr` was initialized, by the trait's contract.
        unsafe { bindings::_raw_spin_lock_irqsave(raw(ptr)) }
    }

    unsafe fn unlock(ptr: *mut Self::State, flags: &Self::GuardState) {
        // SAFETY: The caller owns the lock, and `flags` is what locking it returned.
        unsafe { bindings::_raw_spin_unlock_irqrestore(raw(ptr), *flags) }
    }

    unsafe fn try_lock(_ptr: *mut Self::State) -> Option<Self::GuardState> {
        // Not used here; a lock that cannot be had at once is a valid answer.
        None
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: `ptr` was initialized, by the trait's contract.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}

/// Initializer for an [`IrqSpinLock`] with a lock class of its own.
macro_rules! new_irq_spinlock {
    ($inner:expr, $name:literal) => {
        $crate::linux::spinlock::IrqSpinLock::new(
            $inner,
            ::kernel::c_str!($name),
            ::kernel::static_lock_class!(),
        )
    };
}
pub(crate) use new_irq_spinlock;
