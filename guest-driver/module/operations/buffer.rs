// SPDX-License-Identifier: GPL-2.0

//! Buffers: memory that is made ready for DMA once and used in many requests.
//!
//! Registered buffers are a user's pages, pinned for good (`FOLL_LONGTERM`) and charged to
//! `RLIMIT_MEMLOCK`. Allocated buffers are pages of the driver's own, which user space maps.

use core::ptr;

use kernel::{
    bindings,
    mm::Mm,
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, Mutex, UniqueArc, aref::ARef},
};

use crate::{
    io::pages::Page,
    linux::{
        anon_file::{AnonymousFile, Table},
        bindings::{
            VDMA_GFP_BUFFER, VDMA_GFP_NORETRY, VDMA_GFP_RETRY_MAYFAIL, split_page, vdma_alloc_pages,
        },
        scatterlist::SgList,
        vma::{Fault, FaultResult, Mappable, NewMapping},
    },
};

/// Pages that are pinned at a time; their pointers are on the stack.
const BATCH: usize = 32;

/// Most bytes of a buffer.
const MAX_LENGTH: u64 = 1 << 32;

/// The largest run of pages that is asked of the page allocator at once: 2 MiB.
const MAX_ORDER: u32 = 9;

/// Most buffers that an open file may have.
const MAX_BUFFERS: usize = 1024;

/// Pages that are neighbours in physical memory.
struct Run {
    first: Page,
    /// Number of the first page within the buffer.
    index: usize,
    count: usize,
}

/// Whose pages they are.
enum Origin {
    /// A user's, pinned and charged.
    Registered(ARef<Mm>),
    /// The driver's own.
    Allocated,
}

/// Memory for DMA. Dropped in process context: see `deferred.rs`.
pub(crate) struct Buffer {
    runs: KVVec<Run>,
    pages: usize,
    /// Byte of the first page at which the buffer begins.
    offset: usize,
    length: usize,
    origin: Origin,
    /// The next one in the list of those that wait to be dropped.
    next: Option<Pin<UniqueArc<Buffer>>>,
}

// SAFETY: The pages mean the same to every task.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn empty(offset: usize, length: usize, origin: Origin) -> Self {
        Self {
            runs: KVVec::new(),
            pages: 0,
            offset,
            length,
            origin,
            next: None,
        }
    }

    /// Pins `length` bytes of the current task's memory at `address`, for good. May sleep.
    ///
    /// `EFAULT` where the memory is not there or may not be written to; `ENOMEM` beyond
    /// `RLIMIT_MEMLOCK`; `EINVAL` for no bytes, or more than 4 GiB; `EOPNOTSUPP` or `EFAULT` for memory
    /// that cannot be pinned for long, such as pages of a file system.
    pub(crate) fn register(address: u64, length: u64) -> Result<Self> {
        if length == 0 || length > MAX_LENGTH {
            return Err(EINVAL);
        }
        let begin = usize::try_from(address).map_err(|_| EFAULT)?;
        let length = length as usize;
        let end = begin.checked_add(length).ok_or(EFAULT)?;
        let offset = begin % PAGE_SIZE;
        let count = (offset + length).div_ceil(PAGE_SIZE);
        if end.checked_add(PAGE_SIZE).is_none() {
            return Err(EFAULT);
        }
        let mm: ARef<Mm> = kernel::current!()
            .mm()
            .map(|mm| (&**mm).into())
            .ok_or(EFAULT)?;
        // SAFETY: The address space is held.
        kernel::error::to_result(unsafe { bindings::account_locked_vm(mm.as_raw(), count, true) })?;
        // From here on dropping the buffer unpins what it has, and gives the charge back.
        let charge = Charge {
            mm: mm.clone(),
            pages: count,
        };
        let mut buffer = Self::empty(offset, length, Origin::Registered(mm));
        while buffer.pages < count {
            let mut batch = [ptr::null_mut::<bindings::page>(); BATCH];
            let wanted = BATCH.min(count - buffer.pages);
            // SAFETY: There is room for as many pointers as are asked for. Any address may be given.
            let pinned = unsafe {
                bindings::pin_user_pages_fast(
                    begin - offset + buffer.pages * PAGE_SIZE,
                    wanted as i32,
                    bindings::FOLL_WRITE | bindings::FOLL_LONGTERM,
                    batch.as_mut_ptr(),
                )
            };
            kernel::error::to_result(pinned)?;
            if pinned == 0 {
                return Err(EFAULT);
            }
            let pinned = &batch[..pinned as usize];
            for (done, page) in pinned.iter().enumerate() {
                // SAFETY: The function filled in the pages that it pinned.
                let page = unsafe { Page::from_ptr(*page) };
                if let Err(error) = buffer.push(page, 1) {
                    for page in &pinned[done..] {
                        // SAFETY: The page was pinned above, and is not in the buffer.
                        unsafe { bindings::unpin_user_page(*page) };
                    }
                    return Err(error);
                }
            }
        }
        core::mem::forget(charge);
        Ok(buffer)
    }

    /// Allocates at least `length` bytes, zeroed, in as few runs as there are. May sleep.
    ///
    /// `ENOMEM`; `EINVAL` for no bytes, or more than 4 GiB.
    pub(crate) fn allocate(length: u64) -> Result<Self> {
        if length == 0 || length > MAX_LENGTH {
            return Err(EINVAL);
        }
        let count = (length as usize).div_ceil(PAGE_SIZE);
        let mut buffer = Self::empty(0, count * PAGE_SIZE, Origin::Allocated);
        let mut order = MAX_ORDER;
        while buffer.pages < count {
            order = order.min((count - buffer.pages).ilog2());
            // Large runs are a convenience that is not worth reclaiming memory for. Single pages are
            // needed, but nobody else's process.
            let patience = if order > 0 {
                VDMA_GFP_NORETRY
            } else {
                VDMA_GFP_RETRY_MAYFAIL
            };
            // SAFETY: Process context, where sleeping is allowed.
            let first = unsafe { vdma_alloc_pages(VDMA_GFP_BUFFER | patience, order) };
            if first.is_null() {
                order = order.checked_sub(1).ok_or(ENOMEM)?;
                continue;
            }
            if order > 0 {
                // Each page gets a count of its own, for each is mapped on its own.
                // SAFETY: The pages are new, and not compound.
                unsafe { split_page(first, order) };
            }
            // SAFETY: The allocator returned the first of so many pages.
            let page = unsafe { Page::from_ptr(first) };
            if let Err(error) = buffer.push(page, 1 << order) {
                page.run(1 << order).for_each(Page::put);
                return Err(error);
            }
        }
        Ok(buffer)
    }

    /// Appends pages, to the last run if they follow it.
    fn push(&mut self, first: Page, count: usize) -> Result {
        match self.runs.last_mut() {
            Some(last) if last.first.is_followed_by(last.count, first) => last.count += count,
            _ => self.runs.push(
                Run {
                    first,
                    index: self.pages,
                    count,
                },
                GFP_KERNEL,
            )?,
        }
        self.pages += count;
        Ok(())
    }

    /// Bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Runs of neighbouring pages.
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// The run with the page of this number.
    fn run_of(&self, page: usize) -> usize {
        self.runs
            .partition_point(|run| run.index <= page)
            .saturating_sub(1)
    }

    /// The page with this number.
    fn page(&self, page: usize) -> Option<Page> {
        let run = self.runs.get(self.run_of(page))?;
        (page - run.index < run.count).then(|| run.first.nth(page - run.index))
    }

    /// Appends up to `max_bytes` from `offset` on to the empty `list`, in up to `max_entries` entries
    /// of up to `max_entry` bytes: fewer than asked for if it takes more. `EINVAL` for an offset
    /// behind the end.
    pub(crate) fn append_to(
        &self,
        list: &mut SgList,
        offset: usize,
        max_bytes: usize,
        max_entries: usize,
        max_entry: usize,
    ) -> Result {
        if offset > self.length {
            return Err(EINVAL);
        }
        let mut left = max_bytes.min(self.length - offset);
        let mut at = self.offset + offset;
        let mut index = self.run_of(at / PAGE_SIZE);
        let entries = (self.runs.len() - index)
            .min(max_entries)
            .min(left.div_ceil(PAGE_SIZE) + 1);
        // Runs that are longer than an entry may take several.
        let entries = entries.max((left.div_ceil(max_entry) + 1).min(max_entries));
        list.make_room(entries)?;
        while left > 0 && list.room() > 0 {
            let run = self.runs.get(index).ok_or(EINVAL)?;
            let within = at - run.index * PAGE_SIZE;
            let length = left.min(run.count * PAGE_SIZE - within).min(max_entry);
            list.push(
                run.first.nth(within / PAGE_SIZE),
                within % PAGE_SIZE,
                length,
                max_entry,
            )?;
            left -= length;
            at += length;
            if at == (run.index + run.count) * PAGE_SIZE {
                index += 1;
            }
        }
        Ok(())
    }

    /// Puts the buffer into the list of `deferred.rs`, in front of `next`.
    pub(crate) fn set_next(self: Pin<&mut Self>, next: Option<Pin<UniqueArc<Buffer>>>) {
        self.get_mut().next = next;
    }

    /// Takes the rest of the list off the buffer.
    pub(crate) fn take_next(self: Pin<&mut Self>) -> Option<Pin<UniqueArc<Buffer>>> {
        self.get_mut().next.take()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        for run in &self.runs {
            match self.origin {
                // The device may have written to them. Takes folio locks.
                // SAFETY: The buffer holds one pin for each page; no request uses it any more.
                Origin::Registered(_) => unsafe {
                    bindings::unpin_user_page_range_dirty_lock(run.first.as_ptr(), run.count, true)
                },
                // User space may still have them mapped, or others pinned: then they go later.
                Origin::Allocated => run.first.run(run.count).for_each(Page::put),
            }
        }
        if let (Origin::Registered(mm), true) = (&self.origin, self.is_complete()) {
            // SAFETY: The address space is held; so much was charged to it.
            unsafe { bindings::account_locked_vm(mm.as_raw(), self.pages, false) };
        }
    }
}

impl Buffer {
    /// Whether it has all its pages: otherwise making it failed half-way, and [`Charge`] gives back.
    fn is_complete(&self) -> bool {
        self.pages * PAGE_SIZE >= self.offset + self.length
    }
}

/// Pages charged to `RLIMIT_MEMLOCK` for a buffer that is being made.
struct Charge {
    mm: ARef<Mm>,
    pages: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        // SAFETY: The address space is held; so much was charged to it.
        unsafe { bindings::account_locked_vm(self.mm.as_raw(), self.pages, false) };
    }
}

/// A file whose mappings are an allocated buffer.
pub(crate) struct BufferFile(pub(crate) Arc<Buffer>);

static TABLE: Table<BufferFile> = Table::new();

impl AnonymousFile for BufferFile {
    const NAME: &'static CStr = c"[vdma-buffer]";

    fn table() -> &'static Table<Self> {
        &TABLE
    }
}

impl crate::linux::chardev::Mmap for BufferFile {
    fn map(&self, mapping: NewMapping<'_>) -> Result {
        if !mapping.is_shared() {
            return Err(EINVAL);
        }
        let end = mapping
            .offset()
            .and_then(|offset| offset.checked_add(mapping.len() as u64));
        if end.is_none_or(|end| end > self.0.length as u64) {
            return Err(EINVAL);
        }
        // SAFETY: This is the state of the file.
        unsafe { mapping.fault_pages::<Self>() };
        Ok(())
    }
}

impl Mappable for BufferFile {
    fn mapped(&self) -> Result {
        Ok(())
    }

    fn duplicated(&self) {}

    fn unmapped(&self) {}

    fn fault(&self, fault: Fault<'_>) -> FaultResult {
        if fault.is_huge() {
            return FaultResult::FALLBACK;
        }
        let number = (fault.offset() / PAGE_SIZE as u64) as usize;
        match self.0.page(number) {
            Some(page) => fault.insert_page(page),
            None => FaultResult::BUS_ERROR,
        }
    }
}

/// The buffers of an open file, by their ids.
#[pin_data]
pub(crate) struct BufferTable {
    #[pin]
    slots: Mutex<KVec<Option<Arc<Buffer>>>>,
}

impl BufferTable {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self { slots <- kernel::new_mutex!(KVec::new(), "vdma_buffers") })
    }

    /// Gives `buffer` the lowest free id; `ENOSPC` when there are too many. May sleep.
    pub(crate) fn insert(&self, buffer: Arc<Buffer>) -> Result<u32> {
        let mut slots = self.slots.lock();
        let free = slots.iter().position(Option::is_none);
        let id = match free {
            Some(id) => {
                slots[id] = Some(buffer);
                id
            }
            None if slots.len() < MAX_BUFFERS => {
                slots.push(Some(buffer), GFP_KERNEL)?;
                slots.len() - 1
            }
            None => return Err(ENOSPC),
        };
        Ok(id as u32)
    }

    /// The buffer with this id; `ENOENT`. May sleep.
    pub(crate) fn get(&self, id: u32) -> Result<Arc<Buffer>> {
        self.slots
            .lock()
            .get(id as usize)
            .and_then(Clone::clone)
            .ok_or(ENOENT)
    }

    /// Takes the buffer with this id out; `ENOENT`. May sleep.
    pub(crate) fn remove(&self, id: u32) -> Result<Arc<Buffer>> {
        self.slots
            .lock()
            .get_mut(id as usize)
            .and_then(Option::take)
            .ok_or(ENOENT)
    }

    /// How many there are. May sleep.
    pub(crate) fn count(&self) -> usize {
        self.slots.lock().iter().flatten().count()
    }
}
