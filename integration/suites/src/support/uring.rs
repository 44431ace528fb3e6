//! io_uring, with waits that end and completions that are counted.

use std::os::fd::{AsFd, AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use io_uring::{
    IoUring, opcode, squeue,
    types::{Fd, SubmitArgs, Timespec},
};
use vdma::{
    Device,
    protocol::{Command, URING_RUN},
};

/// A completion: whose it is, and bytes or a negative error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Completion {
    /// As in the request.
    pub(crate) user_data: u64,
    /// Bytes, or a negative error number.
    pub(crate) result: i32,
}

/// An io_uring instance.
pub(crate) struct Uring(IoUring);

impl Uring {
    /// Room for this many requests.
    pub(crate) fn new(depth: u32) -> Result<Self> {
        IoUring::new(depth).map(Self).context("io_uring_setup")
    }

    /// As [`Uring::new`], with a kernel thread that submits.
    pub(crate) fn with_kernel_thread(depth: u32) -> Result<Self> {
        IoUring::builder()
            .setup_sqpoll(50)
            .build(depth)
            .map(Self)
            .context("io_uring_setup with SQPOLL")
    }

    /// As [`Uring::new`], with completions that are looked for instead of announced.
    pub(crate) fn polled(depth: u32) -> Result<Self> {
        IoUring::builder()
            .setup_iopoll()
            .build(depth)
            .map(Self)
            .context("io_uring_setup with IOPOLL")
    }

    /// Registers buffers.
    ///
    /// # Safety
    ///
    /// They outlive the instance.
    pub(crate) unsafe fn register(&self, buffers: &[libc::iovec]) -> Result<()> {
        // SAFETY: The caller vouches for the buffers.
        unsafe { self.0.submitter().register_buffers(buffers) }.context("register buffers")
    }

    /// Submits requests in one call.
    ///
    /// # Safety
    ///
    /// Their buffers outlive them, and are not referenced by Rust objects until they complete.
    pub(crate) unsafe fn submit(&mut self, entries: &[squeue::Entry]) -> Result<()> {
        // SAFETY: As the caller vouches.
        unsafe { self.0.submission().push_multiple(entries) }
            .ok()
            .context("the submission queue is full")?;
        let mut taken = 0;
        while taken < entries.len() {
            let more = self.0.submit().context("io_uring_enter")?;
            ensure!(
                more > 0,
                "the kernel took {taken} of {} requests",
                entries.len()
            );
            taken += more;
        }
        Ok(())
    }

    /// Waits for `count` completions, at most 20 seconds for each batch.
    pub(crate) fn wait(&mut self, count: usize) -> Result<Vec<Completion>> {
        let time = Timespec::new().sec(20);
        let arguments = SubmitArgs::new().timespec(&time);
        let mut completions = Vec::new();
        loop {
            for entry in self.0.completion() {
                completions.push(Completion {
                    user_data: entry.user_data(),
                    result: entry.result(),
                });
            }
            ensure!(
                completions.len() <= count,
                "{} completions of {count} requests",
                completions.len()
            );
            if completions.len() == count {
                return Ok(completions);
            }
            self.0
                .submitter()
                .submit_with_args(1, &arguments)
                .with_context(|| format!("{} of {count} completions", completions.len()))?;
        }
    }

    /// Fails if there is a completion that nobody expects.
    pub(crate) fn expect_none(&mut self) -> Result<()> {
        let entry = self.0.completion().next();
        ensure!(entry.is_none(), "an unexpected completion: {entry:?}");
        Ok(())
    }
}

/// A file for requests.
pub(crate) fn fd(file: impl AsFd) -> Fd {
    Fd(file.as_fd().as_raw_fd())
}

/// A submission that runs `command`; both it and what it names have to outlive the request.
pub(crate) fn command(device: &Device, command: &mut Command) -> squeue::Entry {
    opcode::UringCmd16::new(fd(device.file()), URING_RUN)
        .addr(Some(std::ptr::from_mut(command) as u64))
        .build()
}
