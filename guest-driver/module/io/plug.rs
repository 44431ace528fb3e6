// SPDX-License-Identifier: GPL-2.0

//! One kick for all requests of a submission: `struct blk_plug`, which io_uring and libaio put around
//! what they submit together, and which the scheduler ends when the task sleeps.

use core::ptr;

use kernel::{bindings, sync::Arc};

use crate::{
    io::queue::{Queue, Queues},
    linux::bindings::{vdma_check_plugged, vdma_free_plug_callback, vdma_plug_callback},
};

/// Puts the kick of `queue`, one of `queues`, off until the current submission ends. `false` where there
/// is none: then it is the caller's to kick.
pub(crate) fn defer_kick(queues: &Arc<Queues>, queue: &Queue) -> bool {
    // SAFETY: The function finds the callback with this queue, or makes a zeroed one.
    let callback =
        unsafe { vdma_check_plugged(Some(unplug), ptr::from_ref(queue).cast_mut().cast()) };
    // SAFETY: Null, or a callback of this task's plug, which nobody else touches.
    let Some(callback) = (unsafe { callback.as_mut() }) else {
        return false;
    };
    if callback.owner.is_null() {
        // Requests may come back, and the last file be closed, before the plug ends.
        callback.owner = Arc::into_raw(queues.clone()).cast();
    }
    true
}

/// The end of the submission, or its task goes to sleep.
unsafe extern "C" fn unplug(raw: *mut bindings::blk_plug_cb, _from_schedule: bool) {
    let callback = raw.cast::<vdma_plug_callback>();
    // SAFETY: The callback was made above, and is called once.
    let (queue, owner) = unsafe { ((*callback).queue.cast::<Queue>(), (*callback).owner) };
    // SAFETY: It comes from `into_raw`, and is taken back once.
    let queues = unsafe { Arc::from_raw(owner.cast::<Queues>()) };
    // SAFETY: The queue is one of the queues, which are held.
    unsafe { &*queue }.kick();
    drop(queues);
    // SAFETY: The callback is in no list any more, and was allocated for this.
    unsafe { vdma_free_plug_callback(callback) };
}
