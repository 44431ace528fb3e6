//! libaio's system calls, which no crate wraps, with waits that end and completions that are
//! checked.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd as _},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{event::PollFlags, io::Errno};

use super::{
    completion::{Completion, Expected, Pending},
    region::Region,
};

/// `struct iocb` of `linux/aio_abi.h`, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<Event>() == 32);

/// Operation of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Opcode {
    /// `IOCB_CMD_PREAD`
    Read = 0,
    /// `IOCB_CMD_PWRITE`
    Write = 1,
    /// `IOCB_CMD_FSYNC`
    Sync = 2,
    /// `IOCB_CMD_FDSYNC`
    DataSync = 3,
    /// `IOCB_CMD_POLL`
    Poll = 5,
}

impl Iocb {
    /// A transfer between a range of `region` and the bytes at `offset` of a file.
    pub(crate) fn transfer(
        opcode: Opcode,
        file: impl AsFd,
        region: &Region,
        range: Range<usize>,
        offset: u64,
        data: u64,
    ) -> Result<Self> {
        ensure!(
            range.start <= range.end && range.end <= region.len(),
            "{range:x?} is not inside a region of {:#x} bytes",
            region.len()
        );
        Ok(Self {
            buffer: region.at(range.start) as u64,
            length: range.len() as u64,
            offset: offset.cast_signed(),
            ..Self::new(opcode, file, data)
        })
    }

    /// A wait until the file is ready for one of `events`.
    pub(crate) fn poll(file: impl AsFd, events: PollFlags, data: u64) -> Self {
        Self {
            buffer: events.bits().into(),
            ..Self::new(Opcode::Poll, file, data)
        }
    }

    /// A request without data.
    pub(crate) fn new(opcode: Opcode, file: impl AsFd, data: u64) -> Self {
        Self {
            data,
            opcode: opcode as u16,
            file: file.as_fd().as_raw_fd().cast_unsigned(),
            ..Self::default()
        }
    }

    /// Sets flags of the call: `RWF_*`.
    pub(crate) fn call_flags(mut self, flags: libc::c_int) -> Self {
        self.rw_flags = flags.cast_unsigned();
        self
    }

    /// The success that it asks for.
    fn expected(&self) -> Expected {
        if self.opcode == Opcode::Poll as u16 {
            Expected::Events
        } else {
            Expected::Bytes(usize::try_from(self.length).unwrap_or(usize::MAX))
        }
    }
}

/// An `aio_context_t`. Dropping it waits for what was submitted.
pub(crate) struct Context {
    id: libc::c_ulong,
    pending: Pending,
}

impl Context {
    /// A context for `depth` requests in flight.
    pub(crate) fn new(depth: u32) -> Result<Self> {
        let mut context = 0;
        // SAFETY: The kernel writes the identifier there.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        ensure!(result == 0, "io_setup: {}", io::Error::last_os_error());
        Ok(Self {
            id: context,
            pending: Pending::default(),
        })
    }

    /// Submits requests; returns how many of them the kernel took.
    ///
    /// # Safety
    ///
    /// The requests' regions outlive the requests.
    pub(crate) unsafe fn submit(&mut self, iocbs: &mut [Iocb]) -> Result<usize> {
        let pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(|iocb| &raw mut *iocb).collect();
        // SAFETY: The kernel copies the iocbs and checks what they say; the caller vouches for the
        // buffers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.id,
                pointers.len(),
                pointers.as_ptr(),
            )
        };
        let taken = usize::try_from(result)
            .map_err(|_| io::Error::last_os_error())
            .context("io_submit")?;
        for iocb in &iocbs[..taken] {
            self.pending.submit(iocb.data, iocb.expected())?;
        }
        Ok(taken)
    }

    /// Submits requests, all of which the kernel has to take in one call.
    ///
    /// # Safety
    ///
    /// As for [`Context::submit`].
    pub(crate) unsafe fn submit_all(&mut self, iocbs: &mut [Iocb]) -> Result<()> {
        // SAFETY: The caller vouches for the buffers.
        let taken = unsafe { self.submit(iocbs) }?;
        ensure!(
            taken == iocbs.len(),
            "the kernel took {taken} of {} requests",
            iocbs.len()
        );
        Ok(())
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

    /// Waits for `count` completions, at most 20 seconds.
    fn collect(&self, count: usize) -> Result<Vec<Completion>> {
        let mut events = vec![Event::default(); count];
        let mut got = 0;
        while got < count {
            let mut time = libc::timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let left = count - got;
            let free = events[got..].as_mut_ptr();
            // SAFETY: The array has space for the number of events that is asked for.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.id,
                    left,
                    left,
                    free,
                    &raw mut time,
                )
            };
            let more = match usize::try_from(result) {
                Ok(more) => more,
                Err(_) => match io::Error::last_os_error() {
                    // The task has work to do for io_uring.
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error).context("io_getevents"),
                },
            };
            ensure!(more > 0, "{got} of {count} completions within 20 seconds");
            got += more;
        }
        let completion = |event: Event| Completion {
            user_data: event.data,
            result: event.result,
        };
        Ok(events.into_iter().map(completion).collect())
    }

    /// Fails if there is a completion beyond those that were waited for.
    pub(crate) fn expect_none(&self) -> Result<()> {
        let mut event = [Event::default(); 64];
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: The array has space for the number of events that is asked for.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.id,
                0,
                event.len(),
                event.as_mut_ptr(),
                &raw mut time,
            )
        };
        let count = usize::try_from(result)
            .map_err(|_| io::Error::last_os_error())
            .context("io_getevents")?;
        ensure!(count == 0, "{count} unexpected completions");
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: The context was made by `new` and is not used any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}
