//! libaio's system calls, without the library: nobody wraps them for Rust.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use anyhow::{Context as _, Result, ensure};
use rustix::event::PollFlags;

use super::region::Region;

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
pub(crate) struct Event {
    /// Whose completion this is.
    pub(crate) data: u64,
    object: u64,
    /// Bytes, or a negative error number.
    pub(crate) result: i64,
    result2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<Event>() == 32);

/// What to do.
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
    /// A transfer between `length` bytes of a region, `start` on, and those at `offset` of a file.
    pub(crate) fn transfer(
        opcode: Opcode,
        file: impl AsFd,
        region: &Region,
        start: usize,
        length: usize,
        offset: u64,
        data: u64,
    ) -> Result<Self> {
        ensure!(start + length <= region.len(), "outside of the region");
        Ok(Self {
            buffer: region.at(start) as u64,
            length: length as u64,
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
}

/// An `aio_context_t`. Dropping it waits for what was submitted.
pub(crate) struct Context(libc::c_ulong);

impl Context {
    /// Room for this many requests in flight.
    pub(crate) fn new(depth: u32) -> Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: The kernel writes the identifier there.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        ensure!(result == 0, "io_setup: {}", io::Error::last_os_error());
        Ok(Self(context))
    }

    /// Submits requests; gives how many the kernel took.
    ///
    /// # Safety
    ///
    /// The requests' regions outlive the requests.
    pub(crate) unsafe fn submit(&self, iocbs: &mut [Iocb]) -> io::Result<usize> {
        let pointers: Vec<*mut Iocb> = iocbs.iter_mut().map(|iocb| &raw mut *iocb).collect();
        // SAFETY: The kernel copies the iocbs and checks what they say; the caller vouches for the
        // buffers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.0,
                pointers.len(),
                pointers.as_ptr(),
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for `count` completions, at most 20 seconds.
    pub(crate) fn wait(&self, count: usize) -> Result<Vec<Event>> {
        let mut events = vec![Event::default(); count];
        let mut got = 0;
        while got < count {
            let mut time = libc::timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let left = count - got;
            let room = events[got..].as_mut_ptr();
            // SAFETY: There is room for as many events as are asked for.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.0,
                    left,
                    left,
                    room,
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
        Ok(events)
    }

    /// Completions that are there; does not wait.
    pub(crate) fn ready(&self) -> Result<usize> {
        let mut event = [Event::default(); 64];
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: There is room for as many events as are asked for.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.0,
                0,
                event.len(),
                event.as_mut_ptr(),
                &raw mut time,
            )
        };
        usize::try_from(result)
            .map_err(|_| io::Error::last_os_error())
            .context("io_getevents")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: The context was made by `new` and is not used any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}
