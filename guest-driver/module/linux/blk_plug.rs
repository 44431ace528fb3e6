// SPDX-License-Identifier: GPL-2.0

//! One call for all that a task submits together: `struct blk_plug`, which io_uring and libaio put
//! around what they submit, and which the scheduler ends when the task sleeps.

use kernel::{bindings, sync::Arc};

use crate::linux::{
    bindings::{vdma_check_plugged, vdma_free_plug_callback, vdma_plug_callback},
    unload::ModuleUser,
};

/// What can be called at the end of a plug.
pub(crate) trait Unplug: Send + Sync + 'static {
    /// The plug ends, or its task goes to sleep. Does not sleep.
    fn unplug(&self);

    /// What keeps the code of the module in place while the target is there. It is dropped with the
    /// target, after all that sleeps.
    fn module_user(&self) -> &ModuleUser;
}

/// Has [`Unplug::unplug`] called once when the current task's plug ends. `false` where there is
/// none. Any context.
#[inline]
pub(crate) fn defer<T: Unplug>(target: &Arc<T>) -> bool {
    // The last file may be closed, and the module unloaded, before the plug ends: the callback has
    // a share in the target, whose user the module waits for.
    let _: &ModuleUser = target.module_user();
    let key = Arc::as_ptr(target);
    // SAFETY: The function finds the callback with this function and key, or makes a zeroed one;
    // the key is compared only.
    let callback = unsafe { vdma_check_plugged(Some(unplug::<T>), key.cast_mut().cast()) };
    // SAFETY: Null, or a callback of this task's plug, which nothing else touches.
    let Some(callback) = (unsafe { callback.as_mut() }) else {
        return false;
    };
    if callback.owner.is_null() {
        // What was submitted may complete, and the last file be closed, before the plug ends.
        callback.owner = Arc::into_raw(target.clone()).cast();
    }
    true
}

unsafe extern "C" fn unplug<T: Unplug>(raw: *mut bindings::blk_plug_cb, _from_schedule: bool) {
    let callback = raw.cast::<vdma_plug_callback>();
    // SAFETY: The callback was made by `defer`, with memory for the whole structure, and is called
    // once.
    let owner = unsafe { (*callback).owner };
    // SAFETY: It comes from `into_raw` in `defer`, for the same `T`, and is taken back once: a
    // callback is not left without an owner, for nothing fails between making it and setting that.
    let target = unsafe { Arc::from_raw(owner.cast::<T>()) };
    target.unplug();
    drop(target);
    // SAFETY: The callback is in no list any more, and was allocated for this.
    unsafe { vdma_free_plug_callback(callback) };
}
