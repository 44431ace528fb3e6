// SPDX-License-Identifier: GPL-2.0

//! What memory of a user looks like on its way to the device: every kind of address that a page has.

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
        page_list::PageList,
    },
    operations::buffer::DmaBuffer,
    protocol::{ExplainedPage, Explanation, PAGE_ANONYMOUS, PAGE_BOUNCED, PAGE_HUGE},
};

/// Most pages that are pinned at a time.
const MAX_PAGES: usize = 1024;

/// Pins the memory that the structure at `address` names, as a request would, and fills in what the
/// device would see of it. Its pages are shown as far as the caller's array reaches. May sleep.
pub(crate) fn explain(
    address: usize,
    queue: &Queue,
    reach: Reach,
    max_segment: usize,
) -> Result<isize> {
    let (mut reader, mut writer) =
        UserSlice::new(UserPtr::from_addr(address), size_of::<Explanation>()).reader_writer();
    let mut explanation: Explanation = reader.read()?;
    let room = usize::try_from(explanation.room)?.min(MAX_PAGES);
    let length = usize::try_from(explanation.length)?;
    if length == 0 || room == 0 {
        return Err(EINVAL);
    }
    let start = usize::try_from(explanation.address).map_err(|_| EFAULT)?;
    // Pages behind the array's end need not be pinned.
    let length = length.min(room * PAGE_SIZE - start % PAGE_SIZE);
    let mut memory = UserRange::new();
    let mut buffers = memory.set(IterDirection::Dest, explanation.address, length)?;
    let mut held = PageList::<DmaBuffer>::none();
    let entries = buffers.page_bound(room);
    held.take(&mut buffers, length, entries, max_segment)?;

    let array = usize::try_from(explanation.pages).map_err(|_| EFAULT)?;
    let mut out =
        UserSlice::new(UserPtr::from_addr(array), room * size_of::<ExplainedPage>()).writer();
    let mut entries = held.entry_lengths();
    let mut left_in_entry = entries.next().unwrap_or(0);
    let mut entry = 0;
    let mut done = 0;
    let mut count = 0;
    for (page, offset, length) in held.pieces() {
        if left_in_entry == 0 {
            left_in_entry = entries.next().unwrap_or(0);
            entry += 1;
        }
        left_in_entry = left_in_entry.saturating_sub(length);
        let reachable = reach.includes(page);
        let mut flags = 0;
        flags |= if page.is_huge() { PAGE_HUGE } else { 0 };
        flags |= if page.is_anonymous() {
            PAGE_ANONYMOUS
        } else {
            0
        };
        flags |= if reachable { 0 } else { PAGE_BOUNCED };
        let bus_address = queue
            .with_virtqueue(|queue| queue.bus_address(page, offset, length))
            .ok_or(ENODEV)?
            .filter(|_| reachable);
        let kernel_address = page
            .kernel_address()
            .map_or(0, |address| (address + offset) as u64);
        out.write(&ExplainedPage {
            address: explanation.address + done as u64,
            kernel_address,
            physical_address: page.physical_address() + offset as u64,
            bus_address: bus_address.unwrap_or(0),
            offset: explanation.offset.saturating_add(done as u64),
            length: length as u32,
            entry,
            flags,
            reserved: 0,
        })?;
        done += length;
        count += 1;
    }
    explanation.count = count;
    writer.write(&explanation)?;
    Ok(0)
}
