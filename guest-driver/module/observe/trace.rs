// SPDX-License-Identifier: GPL-2.0

//! The trace: a ring of completed requests in vmalloc memory, which user space maps and reads
//! without a call.
//!
//! The completions of several CPUs write at once: each takes the next number, and marks the slot
//! while it writes (see [`TraceRecord`]). A writer never waits for readers: slow ones lose records
//! and notice it.

use core::mem::{offset_of, size_of};

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{Relaxed, Release, ordering},
};

use crate::{
    linux::{cpu::PreemptGuard, vmalloc::VmallocArea},
    protocol::{TraceHeader, TraceRecord},
};

/// Records of a ring: a power of two.
const CAPACITY: u64 = 4096;

/// Bytes of a ring: a page for the header, then the records.
pub(crate) const LENGTH: usize = PAGE_SIZE + CAPACITY as usize * size_of::<TraceRecord>();

/// A ring of records, in pages that are neighbours in virtual memory only.
pub(crate) struct TraceRing(VmallocArea);

impl TraceRing {
    /// An empty ring. May sleep.
    pub(crate) fn new() -> Result<Self> {
        let area = VmallocArea::new(LENGTH)?;
        let header = TraceHeader {
            head: 0,
            capacity: CAPACITY as u32,
            records_offset: PAGE_SIZE as u32,
            record_size: size_of::<TraceRecord>() as u32,
            reserved: 0,
        };
        area.write(0, &header, 0)?;
        Ok(Self(area))
    }

    /// The memory of the ring.
    pub(crate) fn area(&self) -> &VmallocArea {
        &self.0
    }

    /// Appends `record`, over the oldest one. Any context.
    pub(crate) fn append(&self, record: TraceRecord) {
        const { assert!(offset_of!(TraceHeader, head) == 0) };
        const { assert!(offset_of!(TraceRecord, stamp) == 0) };
        let Some([head]) = self.0.words(0, 1) else {
            return;
        };
        // Tasks that poll for completions come here too. One that was preempted half-way would
        // write over what others have written since.
        let _guard = PreemptGuard::new();
        let number = head.fetch_add(1, Relaxed);
        let index = (number % CAPACITY) as usize;
        let offset = PAGE_SIZE + index * size_of::<TraceRecord>();
        let Some([stamp]) = self.0.words(offset, 1) else {
            return;
        };
        // The mark has to be seen before any of the record. The slot is this CPU's until the ring
        // has come round: interrupts that arrive in between take other numbers, and 4096 of them do
        // not.
        stamp.xchg(2 * number + 1, ordering::Full);
        let _ = self.0.write(offset, &record, 1);
        stamp.store(2 * number + 2, Release);
    }
}
