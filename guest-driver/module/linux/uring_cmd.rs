// SPDX-License-Identifier: GPL-2.0

//! Commands of io_uring: `IORING_OP_URING_CMD`.
//!
//! A command is submitted in the caller's context and ends there: its completion, in interrupt context,
//! hands it to the submitter's task, which writes the results to its memory before the ring hears of
//! them.

use core::{
    mem::{align_of, size_of},
    ptr::NonNull,
};

use kernel::{bindings, ffi::c_uint, sync::aref::ARef};

use crate::{
    io::transfer::Transfer,
    linux::bindings::{
        __io_uring_cmd_done, VDMA_URING_CQE32, VDMA_URING_NONBLOCK, vdma_task_has_memory,
        vdma_uring_address, vdma_uring_complete_in_task, vdma_uring_flags, vdma_uring_head,
        vdma_uring_operation, vdma_uring_private,
    },
    operations::command,
};

/// What is kept there until the end. It begins with what the shim reads.
#[repr(C)]
struct Private {
    head: vdma_uring_head,
    transfer: NonNull<Transfer>,
    /// Where the caller has the structure that results go to.
    address: u64,
    /// Whether completions of the ring have room for the value.
    large: bool,
}

const _: () = {
    // The space that io_uring gives to a command under way (`pdu` of `struct io_uring_cmd`).
    assert!(size_of::<Private>() <= 32);
    assert!(align_of::<Private>() <= 8);
};

/// A command that is being submitted.
pub(crate) struct Submission {
    raw: NonNull<bindings::io_uring_cmd>,
    issue_flags: c_uint,
}

impl Submission {
    /// # Safety
    ///
    /// `raw` is the argument of `->uring_cmd`, and the result ends with that call.
    pub(crate) unsafe fn from_raw(
        raw: *mut bindings::io_uring_cmd,
        issue_flags: c_uint,
    ) -> Option<Self> {
        NonNull::new(raw).map(|raw| Self { raw, issue_flags })
    }

    /// Whether the call may not wait for room: io_uring then tries again from where it may.
    pub(crate) fn no_wait(&self) -> bool {
        self.issue_flags & VDMA_URING_NONBLOCK != 0
    }

    /// The `cmd_op` of the submission.
    pub(crate) fn operation(&self) -> u32 {
        // SAFETY: Valid during the call.
        unsafe { vdma_uring_operation(self.raw.as_ptr()) }
    }

    /// The `uring_cmd_flags` of the submission.
    pub(crate) fn flags(&self) -> u32 {
        // SAFETY: Valid during the call.
        unsafe { vdma_uring_flags(self.raw.as_ptr()) }
    }

    /// The `addr` of the submission.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: Valid during the call.
        unsafe { vdma_uring_address(self.raw.as_ptr()) }
    }

    /// The means to end the command later. When the result is not used for that, the call has to
    /// return something else than that it was queued.
    pub(crate) fn queue(&self) -> UringCommand {
        UringCommand {
            raw: self.raw,
            address: self.address(),
            large: self.issue_flags & VDMA_URING_CQE32 != 0,
        }
    }
}

/// A command that has been queued. It stays valid until it has ended, which happens once.
pub(crate) struct UringCommand {
    raw: NonNull<bindings::io_uring_cmd>,
    address: u64,
    large: bool,
}

// SAFETY: A command may be handed to its task in any context.
unsafe impl Send for UringCommand {}

impl UringCommand {
    /// Ends the command, in its submitter's task, with the outcome of `transfer`. Any context.
    pub(crate) fn finish_in_task(self, transfer: ARef<Transfer>) {
        // SAFETY: The command is valid until it has ended.
        let private = unsafe { vdma_uring_private(self.raw.as_ptr()) }.cast::<Private>();
        let content = Private {
            head: vdma_uring_head {
                finish: Some(finish),
            },
            transfer: ARef::into_raw(transfer),
            address: self.address,
            large: self.large,
        };
        // SAFETY: The space is the driver's, and as large and aligned as was checked above.
        unsafe { private.write(content) };
        // SAFETY: The command has not ended yet.
        unsafe { vdma_uring_complete_in_task(self.raw.as_ptr()) };
    }
}

/// Runs in the submitter's task, or, when that is going away, in somebody's who has not its memory.
unsafe extern "C" fn finish(raw: *mut bindings::io_uring_cmd, issue_flags: c_uint) {
    // SAFETY: The command is valid until it has ended; `finish_in_task` has filled the space in.
    let Private {
        transfer,
        address,
        large,
        ..
    } = unsafe { vdma_uring_private(raw).cast::<Private>().read() };
    // SAFETY: It comes from `into_raw`, and is taken back once.
    let transfer = unsafe { ARef::from_raw(transfer) };
    let mut result = transfer.result().map(|bytes| bytes as i64);
    let value = transfer.value();
    // SAFETY: No precondition.
    if unsafe { vdma_task_has_memory() } {
        if let Err(error) = command::write_results(address, result, value) {
            result = Err(error);
        }
    }
    let code = match result {
        Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
        Err(error) => error.to_errno(),
    };
    drop(transfer);
    // SAFETY: The command ends here, once; the flags are those that came in.
    unsafe { __io_uring_cmd_done(raw, code, value, issue_flags, large) };
}
