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
    Some(bar.io_memory().and_then(|memory| {
        let mut done = 0;
        let mut step = [0; STEP];
        while buffers.len() > 0 {
            let step = &mut step[..buffers.len().min(STEP)];
            let at = position + done as u64;
            let copied = match direction {
                Direction::Write => {
                    let copied = buffers.copy_from(step);
                    memory.write(at, &step[..copied])?;
                    copied
                }
                _ => {
                    memory.read(at, step)?;
                    buffers.copy_to(step)
                }
            };
            done += copied;
            if copied < step.len() {
                return if done > 0 { Ok(done) } else { Err(EFAULT) };
            }
        }
        Ok(done)
    }))
}
