//! io_uring, with waits that end and completions that are checked.

use std::{
    ops::Range,
    os::fd::{AsFd, AsRawFd as _},
};

use anyhow::{Context as _, Result, ensure};
use io_uring::{
    IoUring, opcode,
    squeue::{Entry, Flags},
    types::{Fd, SubmitArgs, Timespec},
};
use rustix::io::Errno;
use vdma::{
    Device,
    protocol::{Command, URING_RUN},
};

use super::{
    completion::{Completion, Expected, Pending},
    region::Region,
};

/// First `user_data` of requests that name none.
const UNNAMED: u64 = 1 << 32;

/// A request, and the success that it asks for.
#[derive(Clone)]
pub(crate) struct Request {
    entry: Entry,
    user_data: Option<u64>,
    expected: Expected,
}

impl Request {
    /// A request that has to return `expected`.
    pub(crate) fn new(entry: Entry, expected: Expected) -> Self {
        Self {
            entry,
            user_data: None,
            expected,
        }
    }

    /// Gives it a `user_data` by which its completion can be told.
    pub(crate) fn user_data(mut self, user_data: u64) -> Self {
        self.user_data = Some(user_data);
        self
    }

    /// Sets flags of the submission.
    pub(crate) fn flags(mut self, flags: Flags) -> Self {
        self.entry = self.entry.flags(flags);
        self
    }
}

/// A read of `file` at `offset` into a range of `region`.
pub(crate) fn read(file: impl AsFd, region: &Region, range: Range<usize>, offset: u64) -> Request {
    let (address, length) = memory(region, &range);
    let entry = opcode::Read::new(fd(file), address, length).offset(offset);
    Request::new(entry.build(), Expected::Bytes(range.len()))
}

/// A write of a range of `region` to `file` at `offset`.
pub(crate) fn write(file: impl AsFd, region: &Region, range: Range<usize>, offset: u64) -> Request {
    let (address, length) = memory(region, &range);
    let entry = opcode::Write::new(fd(file), address, length).offset(offset);
    Request::new(entry.build(), Expected::Bytes(range.len()))
}

/// The address and length of a range, which has to be part of the region.
fn memory(region: &Region, range: &Range<usize>) -> (*mut u8, u32) {
    assert!(
        range.start <= range.end && range.end <= region.len(),
        "{range:x?} is not inside a region of {:#x} bytes",
        region.len()
    );
    let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
    (region.at(range.start), length)
}

/// A submission that runs `command`, which has to process all of its length; the command and the
/// memory that it names have to outlive the request.
pub(crate) fn command(device: &Device, command: &mut Command) -> Request {
    let entry = opcode::UringCmd16::new(fd(device.file()), URING_RUN)
        .addr(Some(std::ptr::from_mut(command) as u64))
        .build();
    let length = usize::try_from(command.length).unwrap_or(usize::MAX);
    Request::new(entry, Expected::Bytes(length))
}

/// A request for each command; see [`command`].
pub(crate) fn commands(device: &Device, commands: &mut [Command]) -> Vec<Request> {
    commands
        .iter_mut()
        .map(|one| command(device, one))
        .collect()
}

/// A file for requests.
pub(crate) fn fd(file: impl AsFd) -> Fd {
    Fd(file.as_fd().as_raw_fd())
}

/// An io_uring instance.
pub(crate) struct Uring {
    ring: IoUring,
    pending: Pending,
    next: u64,
}

impl Uring {
    /// An instance that takes `depth` requests in one submission.
    pub(crate) fn new(depth: u32) -> Result<Self> {
        let ring = IoUring::new(depth).context("io_uring_setup")?;
        Ok(Self::from_ring(ring))
    }

    /// As [`Uring::new`], with a kernel thread that submits (`IORING_SETUP_SQPOLL`).
    pub(crate) fn with_sqpoll(depth: u32) -> Result<Self> {
        let ring = IoUring::builder()
            .setup_sqpoll(50)
            .build(depth)
            .context("io_uring_setup with SQPOLL")?;
        Ok(Self::from_ring(ring))
    }

    /// As [`Uring::new`], with completions that are polled for (`IORING_SETUP_IOPOLL`).
    pub(crate) fn with_iopoll(depth: u32) -> Result<Self> {
        let ring = IoUring::builder()
            .setup_iopoll()
            .build(depth)
            .context("io_uring_setup with IOPOLL")?;
        Ok(Self::from_ring(ring))
    }

    fn from_ring(ring: IoUring) -> Self {
        Self {
            ring,
            pending: Pending::default(),
            next: UNNAMED,
        }
    }

    /// Registers buffers.
    ///
    /// # Safety
    ///
    /// They outlive the instance.
    pub(crate) unsafe fn register(&self, buffers: &[libc::iovec]) -> Result<()> {
        // SAFETY: The caller vouches for the buffers.
        unsafe { self.ring.submitter().register_buffers(buffers) }.context("register buffers")
    }

    /// Submits requests in one call.
    ///
    /// # Safety
    ///
    /// Their buffers outlive them, and are not referenced by Rust objects until they complete.
    pub(crate) unsafe fn submit(&mut self, requests: &[Request]) -> Result<()> {
        let mut entries = Vec::with_capacity(requests.len());
        for request in requests {
            let user_data = request.user_data.unwrap_or_else(|| {
                self.next += 1;
                self.next
            });
            self.pending.submit(user_data, request.expected)?;
            entries.push(request.entry.clone().user_data(user_data));
        }
        // SAFETY: The caller vouches for the buffers.
        unsafe { self.ring.submission().push_multiple(&entries) }
            .ok()
            .context("the submission queue is full")?;
        let mut taken = 0;
        while taken < entries.len() {
            let more = self.ring.submit().context("io_uring_enter")?;
            ensure!(
                more > 0,
                "the kernel took {taken} of {} requests",
                entries.len()
            );
            taken += more;
        }
        Ok(())
    }

    /// Submits requests in one call and waits until all have succeeded.
    ///
    /// # Safety
    ///
    /// As for [`Uring::submit`].
    pub(crate) unsafe fn run(&mut self, requests: &[Request]) -> Result<()> {
        // SAFETY: The caller vouches for the buffers.
        unsafe { self.submit(requests) }?;
        self.wait(requests.len())
    }

    /// Waits for `count` completions, each of which has to be the success that its request asks
    /// for, all of its bytes included.
    pub(crate) fn wait(&mut self, count: usize) -> Result<()> {
        let completions = self.collect(count)?;
        self.pending.succeed(&completions)
    }

    /// Waits for `count` completions, each of which has to be `error`.
    pub(crate) fn wait_for_error(&mut self, count: usize, error: Errno) -> Result<()> {
        let completions = self.collect(count)?;
        self.pending.fail(&completions, error)
    }

    /// Waits for `count` completions and returns them unchecked, but for each being that of a
    /// request in flight.
    #[must_use = "the results are not checked"]
    pub(crate) fn wait_raw(&mut self, count: usize) -> Result<Vec<Completion>> {
        let completions = self.collect(count)?;
        self.pending.complete(&completions)?;
        Ok(completions)
    }

    /// Waits at most 20 seconds for each batch of completions.
    fn collect(&mut self, count: usize) -> Result<Vec<Completion>> {
        let time = Timespec::new().sec(20);
        let arguments = SubmitArgs::new().timespec(&time);
        let mut completions = Vec::new();
        loop {
            for entry in self.ring.completion() {
                completions.push(Completion {
                    user_data: entry.user_data(),
                    result: entry.result().into(),
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
            self.ring
                .submitter()
                .submit_with_args(1, &arguments)
                .with_context(|| format!("{} of {count} completions", completions.len()))?;
        }
    }

    /// Fails if there is a completion beyond those that were waited for.
    pub(crate) fn expect_none(&mut self) -> Result<()> {
        let entry = self.ring.completion().next();
        ensure!(entry.is_none(), "an unexpected completion: {entry:?}");
        Ok(())
    }
}
