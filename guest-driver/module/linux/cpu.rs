// SPDX-License-Identifier: GPL-2.0

//! The CPU that runs the current task: its number, preemption, and what a loop that polls does
//! between two tries.

use core::marker::PhantomData;

use kernel::bindings;

use crate::linux::bindings::{
    vdma_cond_resched, vdma_cpu_relax, vdma_preempt_disable, vdma_preempt_enable,
};

/// The number of the current CPU. The task may move to another one at once, so this is good for
/// choosing among equals only.
#[inline]
pub(crate) fn current_number() -> usize {
    // SAFETY: No precondition: the raw variant does not ask for preemption to be disabled.
    unsafe { bindings::raw_smp_processor_id() as usize }
}

/// Tells the CPU that it runs a polling loop.
#[inline]
pub(crate) fn relax() {
    // SAFETY: No precondition.
    unsafe { vdma_cpu_relax() }
}

/// Lets other tasks run, if some are waiting for this CPU. May sleep.
#[inline]
pub(crate) fn cond_resched() {
    // SAFETY: No precondition beyond a context that may sleep; in another one the kernel warns.
    unsafe { vdma_cond_resched() }
}

/// Keeps the current task on its CPU, and others off it, until dropped. Interrupts still arrive.
///
/// # Invariants
///
/// Preemption was disabled once for this object, by the task that has it: it is not `Send`.
pub(crate) struct PreemptGuard(PhantomData<*const ()>);

impl PreemptGuard {
    #[inline]
    pub(crate) fn new() -> Self {
        // SAFETY: Enabled again when the guard is dropped, by the same task.
        unsafe { vdma_preempt_disable() };
        // INVARIANT: Disabled above.
        Self(PhantomData)
    }
}

impl Drop for PreemptGuard {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: Disabled once for this object, by the type's invariant.
        unsafe { vdma_preempt_enable() }
    }
}
