// SPDX-License-Identifier: GPL-2.0

//! Small reads and writes that the CPU copies through the BAR, without a request (parameter
//! `inline_bytes`).

use kernel::prelude::*;

use crate::{linux::iov_iter::IovIter, memory::bar::Bar, observe::counters::Direction};

/// Bytes that are copied at a time; they are on the stack.
const STEP: usize = 256;

/// Copies `buffers` to or from byte `position` of device memory; `None` unless the BAR has all of
/// the range. May sleep.
pub(crate) fn copy(
    bar: Option<&Bar>,
    direction: Direction,
    position: u64,
    buffers: &mut IovIter<'_>,
) -> Option<Result<usize>> {
    let bar = bar.filter(|bar| position + buffers.len() as u64 <= bar.size())?;
    let mut done = 0;
    let mut step = [0; STEP];
    while buffers.len() > 0 {
        let step = &mut step[..buffers.len().min(STEP)];
        // The caller's memory may fault for any time, so it is accessed outside of the BAR's lock.
        let copied = match copy_step(bar, direction, position + done as u64, buffers, step) {
            Ok(copied) => copied,
            Err(_) if done > 0 => break,
            Err(error) => return Some(Err(error)),
        };
        done += copied;
        if copied < step.len() {
            return Some(if done > 0 { Ok(done) } else { Err(EFAULT) });
        }
    }
    Some(Ok(done))
}

/// Copies up to the length of `step`, by way of it, and returns how many bytes.
fn copy_step(
    bar: &Bar,
    direction: Direction,
    at: u64,
    buffers: &mut IovIter<'_>,
    step: &mut [u8],
) -> Result<usize> {
    match direction {
        Direction::Write => {
            let copied = buffers.copy_from(step);
            bar.with_io_memory(|memory| memory.write(at, &step[..copied]))?;
            Ok(copied)
        }
        _ => {
            bar.with_io_memory(|memory| memory.read(at, step))?;
            Ok(buffers.copy_to(step))
        }
    }
}
