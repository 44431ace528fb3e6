//! The trace of a device: completed requests, read from shared memory without a system call.

use std::{
    mem::offset_of,
    os::fd::{AsFd, FromRawFd, OwnedFd},
    sync::atomic::{Ordering, fence},
};

use rustix::ioctl::{Getter, Opcode, ioctl};
use vdma_protocol::{IOCTL_TRACE, TraceHeader, TraceRecord};

use crate::{Device, Error, Mapping};

/// An open trace. While one exists the driver records the requests that complete.
#[derive(Debug)]
pub struct Trace {
    mapping: Mapping,
    capacity: u64,
    records_offset: usize,
    record_size: usize,
    /// Number of the next record.
    next: u64,
    _file: OwnedFd,
}

/// The result of [`Trace::read`].
#[derive(Debug, Default)]
pub struct TraceRead {
    /// The records, in the order of their numbers.
    pub records: Vec<TraceRecord>,
    /// Records that were overwritten before they were read.
    pub lost: u64,
}

impl Device {
    /// Opens the trace: every request that completes from now on is recorded.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `EPERM` without `CAP_SYS_ADMIN`.
    pub fn trace(&self) -> Result<Trace, Error> {
        // SAFETY: The driver fills a structure of integers.
        let call = unsafe { Getter::<{ IOCTL_TRACE as Opcode }, vdma_protocol::Trace>::new() };
        // SAFETY: The structure of the call stays borrowed until it returns.
        let trace = unsafe { ioctl(self.file().as_fd(), call) }
            .map_err(Into::into)
            .map_err(self.error("ioctl TRACE"))?;
        let descriptor = i32::try_from(trace.file).unwrap_or(-1);
        // SAFETY: The driver has just made the file for this process.
        let file = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let length = usize::try_from(trace.length).unwrap_or(usize::MAX);
        let mapping = Mapping::new(file.as_fd(), 0, length, false)
            .map_err(self.error("mmap of the trace"))?;
        let capacity = mapping.load::<u32>(offset_of!(TraceHeader, capacity))?;
        let records_offset = mapping.load::<u32>(offset_of!(TraceHeader, records_offset))?;
        let record_size = mapping.load::<u32>(offset_of!(TraceHeader, record_size))?;
        let next = mapping.load::<u64>(offset_of!(TraceHeader, head))?;
        Ok(Trace {
            mapping,
            capacity: u64::from(capacity).max(1),
            records_offset: records_offset as usize,
            record_size: record_size as usize,
            next,
            _file: file,
        })
    }
}

impl Trace {
    /// The records that are complete since the last call. Never waits, and makes no system call.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`] if the driver's description of the trace is wrong.
    pub fn read(&mut self) -> Result<TraceRead, Error> {
        let mut read = TraceRead::default();
        let head = self.mapping.load::<u64>(offset_of!(TraceHeader, head))?;
        fence(Ordering::Acquire);
        let oldest = head.saturating_sub(self.capacity);
        if self.next < oldest {
            read.lost += oldest - self.next;
            self.next = oldest;
        }
        while self.next < head {
            match self.record(self.next)? {
                Slot::Complete(record) => read.records.push(record),
                Slot::Overwritten => read.lost += 1,
                Slot::Unfinished => break,
            }
            self.next += 1;
        }
        Ok(read)
    }

    /// The record with this number.
    fn record(&self, number: u64) -> Result<Slot, Error> {
        let index = usize::try_from(number % self.capacity).unwrap_or(0);
        let at = self.records_offset + index * self.record_size;
        let wanted = 2 * number + 2;
        let before = self.mapping.load::<u64>(at)?;
        if before != wanted {
            return Ok(if before > wanted {
                Slot::Overwritten
            } else {
                Slot::Unfinished
            });
        }
        fence(Ordering::Acquire);
        let word = |field: usize| self.mapping.load::<u64>(at + field);
        let half = |field: usize| self.mapping.load::<u32>(at + field);
        let record = TraceRecord {
            stamp: before,
            time: word(offset_of!(TraceRecord, time))?,
            latency: word(offset_of!(TraceRecord, latency))?,
            offset: word(offset_of!(TraceRecord, offset))?,
            length: word(offset_of!(TraceRecord, length))?,
            operation: self.mapping.load(at + offset_of!(TraceRecord, operation))?,
            queue: self.mapping.load(at + offset_of!(TraceRecord, queue))?,
            result: half(offset_of!(TraceRecord, result))?.cast_signed(),
            pages: half(offset_of!(TraceRecord, pages))?,
            segments: half(offset_of!(TraceRecord, segments))?,
            transferred: word(offset_of!(TraceRecord, transferred))?,
        };
        fence(Ordering::Acquire);
        let after = self.mapping.load::<u64>(at)?;
        Ok(if after == wanted {
            Slot::Complete(record)
        } else {
            Slot::Overwritten
        })
    }
}

enum Slot {
    Complete(TraceRecord),
    Overwritten,
    Unfinished,
}
