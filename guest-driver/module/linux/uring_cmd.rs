// SPDX-License-Identifier: GPL-2.0

//! Commands of io_uring: `IORING_OP_URING_CMD`.
//!
//! A command is submitted in the caller's context and ends there: its completion, in interrupt
//! context, hands it to the submitter's task, which writes the results to its memory before it
//! completes into the ring.

use core::{
    marker::PhantomData,
    mem::{self, align_of, size_of},
    ptr::NonNull,
};

use kernel::{bindings, ffi::c_uint, prelude::*};

use crate::linux::{
    bindings::{
        __io_uring_cmd_done, VDMA_URING_CQE32, VDMA_URING_NONBLOCK, vdma_task_has_memory,
        vdma_uring_address, vdma_uring_complete_in_task, vdma_uring_flags, vdma_uring_head,
        vdma_uring_operation, vdma_uring_private,
    },
    call_marker::CallMarker,
};

/// What a command has led to.
pub(crate) trait CommandOutcome: Send + 'static {
    /// Writes the results to the submitter's memory, at `address`, and returns them. Called in the
    /// submitter's task; or, when that is going away, in another one, without `has_memory`. May
    /// sleep.
    fn deliver(self, address: u64, has_memory: bool) -> (Result<i64>, u64);
}

/// What is kept there until the end. It begins with what the shim reads.
#[repr(C)]
struct Private<O> {
    head: vdma_uring_head,
    outcome: O,
    /// Where the caller has the structure that results go to.
    address: u64,
    /// Whether completions of the ring have space for the value.
    large: bool,
}

/// What `->uring_cmd` returns. Only a [`UringSubmission`] makes one, of the call that it belongs
/// to.
pub(crate) struct UringResult<'a>(i32, CallMarker<'a>);

impl UringResult<'_> {
    pub(super) fn into_raw(self) -> i32 {
        self.0
    }
}

/// A command that is being submitted.
///
/// # Invariants
///
/// `raw` is valid, has not ended, and is not used by anything else.
pub(crate) struct UringSubmission<'a> {
    raw: NonNull<bindings::io_uring_cmd>,
    issue_flags: c_uint,
    _call: CallMarker<'a>,
}

impl<'a> UringSubmission<'a> {
    /// # Safety
    ///
    /// These are the arguments of `->uring_cmd`, and the result ends with that call.
    pub(super) unsafe fn from_raw(
        raw: NonNull<bindings::io_uring_cmd>,
        issue_flags: c_uint,
    ) -> Self {
        // INVARIANT: The caller vouches for it.
        Self {
            raw,
            issue_flags,
            _call: PhantomData,
        }
    }

    /// Whether the call may not wait: io_uring then tries again from where it may.
    pub(crate) fn no_wait(&self) -> bool {
        self.issue_flags & VDMA_URING_NONBLOCK != 0
    }

    /// The `cmd_op` of the submission.
    pub(crate) fn operation(&self) -> u32 {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_uring_operation(self.raw.as_ptr()) }
    }

    /// The `uring_cmd_flags` of the submission.
    pub(crate) fn flags(&self) -> u32 {
        // SAFETY: Valid by the type's invariant.
        unsafe { vdma_uring_flags(self.raw.as_ptr()) }
    }

    /// The `addr` of the submission.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: Valid by the type's invariant; the submission entry is there during the call.
        unsafe { vdma_uring_address(self.raw.as_ptr()) }
    }

    /// Refuses the command.
    pub(crate) fn fail(self, error: Error) -> UringResult<'a> {
        UringResult(error.to_errno(), PhantomData)
    }

    /// The means to end the command later, and to return from the call before.
    pub(crate) fn into_async(self) -> (UringCommand, QueuedCommand<'a>) {
        // INVARIANT: The command has not ended, and is the result's alone.
        let command = UringCommand {
            raw: self.raw,
            address: self.address(),
            large: self.issue_flags & VDMA_URING_CQE32 != 0,
        };
        let queued = QueuedCommand {
            raw: self.raw,
            _call: PhantomData,
        };
        (command, queued)
    }
}

/// The rest of a submission whose [`UringCommand`] is elsewhere: it may have ended by now.
pub(crate) struct QueuedCommand<'a> {
    /// Compared only.
    raw: NonNull<bindings::io_uring_cmd>,
    _call: CallMarker<'a>,
}

impl<'a> QueuedCommand<'a> {
    /// Returns from the call; the command ends later, or has ended.
    pub(crate) fn queued(self) -> UringResult<'a> {
        UringResult(EIOCBQUEUED.to_errno(), PhantomData)
    }

    /// Returns `error` from the call, if `command` is the one that it was made for. Otherwise it
    /// has ended, or will end.
    pub(crate) fn failed(self, error: Error, command: Option<UringCommand>) -> UringResult<'a> {
        match command {
            Some(command) if command.raw == self.raw => {
                mem::forget(command);
                UringResult(error.to_errno(), PhantomData)
            }
            _ => self.queued(),
        }
    }
}

/// A command that ends later: once, at the latest when this is dropped, with `EIO` then.
///
/// # Invariants
///
/// `raw` has not ended, so it is valid, and its call has returned, or will return, that it was
/// queued.
pub(crate) struct UringCommand {
    raw: NonNull<bindings::io_uring_cmd>,
    address: u64,
    large: bool,
}

// SAFETY: A command may be handed to its task in any context.
unsafe impl Send for UringCommand {}

impl UringCommand {
    /// Ends the command, in its submitter's task, with `outcome`. Any context.
    pub(crate) fn finish_in_task<O: CommandOutcome>(self, outcome: O) {
        self.hand_over(outcome);
        mem::forget(self);
    }

    /// [`Self::finish_in_task`], after which `self` is not used.
    fn hand_over<O: CommandOutcome>(&self, outcome: O) {
        const {
            // The space that io_uring gives to a command under way (`pdu` of `struct
            // io_uring_cmd`).
            assert!(size_of::<Private<O>>() <= 32);
            assert!(align_of::<Private<O>>() <= 8);
        }
        // SAFETY: The command is valid, by the type's invariant.
        let private = unsafe { vdma_uring_private(self.raw.as_ptr()) }.cast::<Private<O>>();
        let content = Private {
            head: vdma_uring_head {
                finish: Some(finish::<O>),
            },
            outcome,
            address: self.address,
            large: self.large,
        };
        // SAFETY: The space is the driver's, and as large and aligned as was checked above.
        unsafe { private.write(content) };
        // SAFETY: The command has not ended, by the type's invariant, and is handed over once.
        unsafe { vdma_uring_complete_in_task(self.raw.as_ptr()) };
    }
}

impl Drop for UringCommand {
    fn drop(&mut self) {
        self.hand_over(Lost);
    }
}

/// The outcome of a command that was dropped.
struct Lost;

impl CommandOutcome for Lost {
    fn deliver(self, _address: u64, _has_memory: bool) -> (Result<i64>, u64) {
        (Err(EIO), 0)
    }
}

unsafe extern "C" fn finish<O: CommandOutcome>(
    raw: *mut bindings::io_uring_cmd,
    issue_flags: c_uint,
) {
    // SAFETY: The command is valid until it has ended; `hand_over::<O>` has filled the space in,
    // and has chosen this function. It is called once.
    let Private {
        outcome,
        address,
        large,
        ..
    } = unsafe { vdma_uring_private(raw).cast::<Private<O>>().read() };
    // SAFETY: No precondition.
    let has_memory = unsafe { vdma_task_has_memory() };
    let (result, value) = outcome.deliver(address, has_memory);
    let code = match result {
        Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
        Err(error) => error.to_errno(),
    };
    // SAFETY: The command ends here, once; the flags are those that came in.
    unsafe { __io_uring_cmd_done(raw, code, value, issue_flags, large) };
}
