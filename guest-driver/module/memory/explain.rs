// SPDX-License-Identifier: GPL-2.0

//! Every kind of address that the pages of a user's memory have on their way to the device.

use core::mem::size_of;

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

use crate::{
    io::queue::Queue,
    linux::{
        bounce::Reach,
        iov_iter::{IterDirection, UserRange},
        page::Page,
        page_list::PageList,
    },
    operations::buffer::DmaBuffer,
    protocol::{ExplainedPage, Explanation, PAGE_ANONYMOUS, PAGE_BOUNCED, PAGE_HUGE},
};

/// Most pages that are pinned at a time.
const MAX_PAGES: usize = 1024;

/// Pins the memory that the structure at `address` names, as a request would, and writes what the
/// device would see of it to the caller's array, as far as that reaches. May sleep.
pub(crate) fn explain(
    address: usize,
    queue: &Queue,
    reach: Reach,
    max_segment_size: usize,
) -> Result<isize> {
    let (mut reader, mut writer) =
        UserSlice::new(UserPtr::from_addr(address), size_of::<Explanation>()).reader_writer();
    let mut explanation: Explanation = reader.read()?;
    let capacity = usize::try_from(explanation.capacity)?.min(MAX_PAGES);
    let length = usize::try_from(explanation.length)?;
    if length == 0 || capacity == 0 {
        return Err(EINVAL);
    }
    let start = usize::try_from(explanation.address).map_err(|_| EFAULT)?;
    // Pages beyond the end of the array need not be pinned.
    let length = length.min(capacity * PAGE_SIZE - start % PAGE_SIZE);
    let mut memory = UserRange::new();
    let mut iter = memory.set(IterDirection::Dest, explanation.address, length)?;
    let mut pages = PageList::<DmaBuffer>::none();
    let entries = iter.page_bound(capacity);
    pages.take(&mut iter, length, entries, max_segment_size)?;

    explanation.count = 0;
    let array = usize::try_from(explanation.pages).map_err(|_| EFAULT)?;
    let array_size = capacity * size_of::<ExplainedPage>();
    let mut out = UserSlice::new(UserPtr::from_addr(array), array_size).writer();
    let mut entries = pages.entry_lengths();
    let mut left_in_entry = entries.next().unwrap_or(0);
    let mut entry = 0;
    let mut done = 0;
    for (page, offset, length) in pages.pieces() {
        if left_in_entry == 0 {
            left_in_entry = entries.next().unwrap_or(0);
            entry += 1;
        }
        left_in_entry = left_in_entry.saturating_sub(length);
        out.write(&ExplainedPage {
            address: explanation.address + done as u64,
            offset: explanation.offset.saturating_add(done as u64),
            entry,
            ..describe(page, offset, length, queue, reach)?
        })?;
        done += length;
        explanation.count += 1;
    }
    writer.write(&explanation)?;
    Ok(0)
}

/// The addresses of `length` bytes from `offset` on of `page`, and what kind of page it is.
fn describe(
    page: Page<'_>,
    offset: usize,
    length: usize,
    queue: &Queue,
    reach: Reach,
) -> Result<ExplainedPage> {
    let reachable = reach.includes(page);
    let bus_address = queue
        .with_virtqueue(|queue| queue.bus_address(page, offset, length))
        .ok_or(ENODEV)?
        .filter(|_| reachable);
    let kernel_address = page
        .kernel_address()
        .map_or(0, |address| (address + offset) as u64);
    let mut flags = 0;
    for (is_set, flag) in [
        (page.is_huge(), PAGE_HUGE),
        (page.is_anonymous(), PAGE_ANONYMOUS),
        (!reachable, PAGE_BOUNCED),
    ] {
        flags |= if is_set { flag } else { 0 };
    }
    Ok(ExplainedPage {
        kernel_address,
        physical_address: page.physical_address() + offset as u64,
        bus_address: bus_address.unwrap_or(0),
        length: length as u32,
        flags,
        ..Default::default()
    })
}
