// SPDX-License-Identifier: GPL-2.0

//! Pages that the driver owns: pinned for good (`pin_user_pages_fast`), or allocated
//! (`alloc_pages`).

use core::ptr::{self, NonNull};

use kernel::{bindings, error::to_result, page::PAGE_SIZE, prelude::*};

use crate::linux::{
    bindings::{
        VDMA_GFP_BUFFER, VDMA_GFP_NORETRY, VDMA_GFP_RETRY_MAYFAIL, split_page, vdma_alloc_pages,
        vdma_put_page,
    },
    cpu,
    mm::LockedPages,
    page::{Page, PageRun},
    wait,
};

/// Pages that are pinned at a time; their pointers are on the stack.
const BATCH: usize = 32;

/// The largest run of pages that is asked of the page allocator at once: 2 MiB.
const MAX_ORDER: u32 = 9;

/// Most bytes of an owner. A scatter-gather entry, whose length is a `u32`, names less.
const MAX_LENGTH: usize = 1 << 32;

/// Pages that are neighbours in physical memory.
struct Run {
    first: NonNull<bindings::page>,
    /// Number of the first page within the owner.
    index: usize,
    count: usize,
}

/// How the pages are given back.
enum Origin {
    /// They are pinned.
    Pinned,
    /// There is one reference to each.
    Allocated,
}

/// Memory for DMA, in runs of pages that belong to this object. Dropped in process context.
///
/// # Invariants
///
/// `runs` name, in the order of their indices, `pages` pages, to each of which this object has a
/// pin or a reference, as `origin` says. They have `length` bytes from `offset` of the first page
/// on.
pub(crate) struct PageRuns {
    runs: KVVec<Run>,
    pages: usize,
    offset: usize,
    length: usize,
    origin: Origin,
    /// Dropped after the pages have been given back.
    _charge: LockedPages,
}

// SAFETY: The pages mean the same to every task.
unsafe impl Send for PageRuns {}
// SAFETY: `&PageRuns` only reads.
unsafe impl Sync for PageRuns {}

impl PageRuns {
    /// No pages, with the charge for `count`: `ENOMEM` beyond `RLIMIT_MEMLOCK`.
    fn empty(offset: usize, origin: Origin, count: usize) -> Result<Self> {
        let charge = LockedPages::charge(count)?;
        // INVARIANT: There are no pages, and no bytes.
        Ok(Self {
            runs: KVVec::new(),
            pages: 0,
            offset,
            length: 0,
            origin,
            _charge: charge,
        })
    }

    /// Pins `length` bytes of the current task's memory at `address`, for good, and charges them to
    /// its user. May sleep; `EINTR` when the task is killed.
    ///
    /// `EFAULT` where the memory is not there or may not be written to; `ENOMEM` beyond
    /// `RLIMIT_MEMLOCK`; `EINVAL` for no bytes, or more than 4 GiB; `EOPNOTSUPP` or `EFAULT` for
    /// memory that cannot be pinned for long, such as pages of a file system.
    pub(crate) fn pin(address: usize, length: usize) -> Result<Self> {
        if length == 0 || length > MAX_LENGTH {
            return Err(EINVAL);
        }
        let offset = address % PAGE_SIZE;
        let begin = address - offset;
        let count = (offset + length).div_ceil(PAGE_SIZE);
        if address.checked_add(length + PAGE_SIZE).is_none() {
            return Err(EFAULT);
        }
        // From here on dropping the object unpins what it has, and gives the charge back.
        let mut pinned = Self::empty(offset, Origin::Pinned, count)?;
        while pinned.pages < count {
            wait::check_alive()?;
            cpu::cond_resched();
            pinned.pin_batch(begin + pinned.pages * PAGE_SIZE, count - pinned.pages)?;
        }
        // INVARIANT: The pages have the bytes of the range.
        pinned.length = length;
        Ok(pinned)
    }

    /// Pins up to `wanted` pages at `address`.
    fn pin_batch(&mut self, address: usize, wanted: usize) -> Result {
        let mut batch = [ptr::null_mut::<bindings::page>(); BATCH];
        // SAFETY: `batch` has memory for the pointers. Any address may be given.
        let pinned = unsafe {
            bindings::pin_user_pages_fast(
                address,
                BATCH.min(wanted) as i32,
                bindings::FOLL_WRITE | bindings::FOLL_LONGTERM,
                batch.as_mut_ptr(),
            )
        };
        to_result(pinned)?;
        let mut pages = batch.iter().take(pinned as usize);
        if pages.len() == 0 {
            return Err(EFAULT);
        }
        while let Some(&page) = pages.next() {
            let first = NonNull::new(page).ok_or(EFAULT)?;
            // SAFETY: The page was pinned above, and the pin is this object's now.
            if let Err(error) = unsafe { self.push(first, 1) } {
                for &page in Iterator::chain(core::iter::once(&page), pages) {
                    // SAFETY: The page was pinned above, and does not belong to the object.
                    unsafe { bindings::unpin_user_page(page) };
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Allocates at least `length` bytes, zeroed, in as few runs as there are, and charges them to
    /// the current task's user. May sleep; `EINTR` when the task is killed.
    ///
    /// `ENOMEM`, also beyond `RLIMIT_MEMLOCK`; `EINVAL` for no bytes, or more than 4 GiB.
    pub(crate) fn allocate(length: usize) -> Result<Self> {
        if length == 0 || length > MAX_LENGTH {
            return Err(EINVAL);
        }
        let count = length.div_ceil(PAGE_SIZE);
        let mut allocated = Self::empty(0, Origin::Allocated, count)?;
        let mut order = MAX_ORDER;
        while allocated.pages < count {
            wait::check_alive()?;
            cpu::cond_resched();
            order = order.min((count - allocated.pages).ilog2());
            // Large runs are a convenience that is not worth reclaiming memory for. Single pages
            // are needed, but not at the price of another process.
            let effort = if order > 0 {
                VDMA_GFP_NORETRY
            } else {
                VDMA_GFP_RETRY_MAYFAIL
            };
            // SAFETY: Any order may be passed.
            let first = unsafe { vdma_alloc_pages(VDMA_GFP_BUFFER | effort, order) };
            let Some(first) = NonNull::new(first) else {
                order = order.checked_sub(1).ok_or(ENOMEM)?;
                continue;
            };
            if order > 0 {
                // Each page gets a count of its own, for each is mapped on its own.
                // SAFETY: The pages are new, and not compound.
                unsafe { split_page(first.as_ptr(), order) };
            }
            // SAFETY: The allocator returned the first of `1 << order` pages, with one reference to
            // each, which are this object's now.
            if let Err(error) = unsafe { allocated.push(first, 1 << order) } {
                put_pages(first.as_ptr(), 1 << order);
                return Err(error);
            }
        }
        // INVARIANT: The pages have these bytes.
        allocated.length = count * PAGE_SIZE;
        Ok(allocated)
    }

    /// Appends pages, to the last run if they follow it. On failure they remain the caller's.
    ///
    /// # Safety
    ///
    /// The caller gives away what `origin` says, of `count` pages that are neighbours.
    unsafe fn push(&mut self, first: NonNull<bindings::page>, count: usize) -> Result {
        match self.runs.last_mut() {
            Some(last) if last.first.as_ptr().wrapping_add(last.count) == first.as_ptr() => {
                last.count += count
            }
            _ => self.runs.push(
                Run {
                    first,
                    index: self.pages,
                    count,
                },
                GFP_KERNEL_ACCOUNT,
            )?,
        }
        // INVARIANT: The pages are in a run.
        self.pages += count;
        Ok(())
    }

    /// Bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Runs of neighbouring pages.
    pub(crate) fn count(&self) -> usize {
        self.runs.len()
    }

    /// The number of the run with this page, or of the last.
    fn run_of(&self, page: usize) -> usize {
        self.runs
            .partition_point(|run| run.index <= page)
            .saturating_sub(1)
    }

    /// The pages of a run from page `index` of the whole on.
    fn rest_of(&self, run: &Run, index: usize) -> Option<PageRun<'_>> {
        let before = index.checked_sub(run.index)?;
        if before >= run.count {
            return None;
        }
        // SAFETY: The pages are some of the run, which this object has a pin or a reference to, for
        // as long as it is borrowed.
        Some(unsafe { PageRun::new(Page::from_raw(run.first.add(before)), run.count - before) })
    }

    /// Whether user space may map the pages: those that were allocated for this. Pinned ones belong
    /// to other mappings.
    pub(crate) fn is_mappable(&self) -> bool {
        matches!(self.origin, Origin::Allocated)
    }

    /// The page with this number, if it may be mapped.
    pub(super) fn mappable_page(&self, index: usize) -> Option<Page<'_>> {
        if !self.is_mappable() {
            return None;
        }
        let run = self.runs.get(self.run_of(index))?;
        self.rest_of(run, index)?.get(0)
    }

    /// The pages behind up to `max_bytes` from byte `offset` on, in pieces of up to `max_piece`
    /// bytes: where each begins in its first page, and how many bytes it has. `EINVAL` for an
    /// offset beyond the end.
    pub(super) fn pieces(
        &self,
        offset: usize,
        max_bytes: usize,
        max_piece: usize,
    ) -> Result<impl Iterator<Item = (PageRun<'_>, usize, usize)>> {
        let mut left = max_bytes.min(self.length.checked_sub(offset).ok_or(EINVAL)?);
        let mut at = self.offset + offset;
        let mut number = self.run_of(at / PAGE_SIZE);
        Ok(core::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let run = self.runs.get(number)?;
            let pages = self.rest_of(run, at / PAGE_SIZE)?;
            let within = at % PAGE_SIZE;
            let length = left.min(pages.len() * PAGE_SIZE - within).min(max_piece);
            left -= length;
            at += length;
            if at == (run.index + run.count) * PAGE_SIZE {
                number += 1;
            }
            Some((pages, within, length))
        }))
    }

    /// Upper bound, up to `limit`, for the pieces that [`Self::pieces`] has.
    pub(super) fn piece_bound(
        &self,
        offset: usize,
        max_bytes: usize,
        max_piece: usize,
        limit: usize,
    ) -> usize {
        let left = max_bytes.min(self.length.saturating_sub(offset));
        let runs = self.runs.len()
            - self
                .run_of((self.offset + offset) / PAGE_SIZE)
                .min(self.runs.len());
        let by_run = runs.min(left.div_ceil(PAGE_SIZE) + 1).min(limit);
        // Runs that are longer than a piece may take several.
        by_run.max((left.div_ceil(max_piece) + 1).min(limit))
    }
}

/// Gives back a reference to each of `count` pages, which the caller has. Any context.
fn put_pages(first: *mut bindings::page, count: usize) {
    for index in 0..count {
        // SAFETY: The callers have a reference to each, which ends here.
        unsafe { vdma_put_page(first.wrapping_add(index)) };
    }
}

impl Drop for PageRuns {
    fn drop(&mut self) {
        for run in &self.runs {
            let mut done = 0;
            while done < run.count {
                let first = run.first.as_ptr().wrapping_add(done);
                let count = (run.count - done).min(1 << MAX_ORDER);
                match self.origin {
                    // The device may have written to them. Takes folio locks.
                    // SAFETY: This object has one pin for each page, and it is not borrowed: no
                    // request uses them any more.
                    Origin::Pinned => unsafe {
                        bindings::unpin_user_page_range_dirty_lock(first, count, true)
                    },
                    // Mappings keep the file that has this object. Where others have pinned the
                    // pages these go later, charged by whoever has pinned them.
                    Origin::Allocated => put_pages(first, count),
                }
                done += count;
                cpu::cond_resched();
            }
        }
    }
}

/// A page that was allocated for this object.
///
/// # Invariants
///
/// This object has a reference to the page.
pub(super) struct OwnedPage(NonNull<bindings::page>);

// SAFETY: The page means the same to every task.
unsafe impl Send for OwnedPage {}
// SAFETY: `&OwnedPage` only reads the pointer.
unsafe impl Sync for OwnedPage {}

impl OwnedPage {
    /// A zeroed page, of the zone that `zone` says beside `GFP_KERNEL_ACCOUNT`. May sleep.
    pub(super) fn new(zone: bindings::gfp_t) -> Result<Self> {
        let flags = bindings::GFP_KERNEL_ACCOUNT | bindings::__GFP_ZERO | zone;
        // SAFETY: One page may always be requested.
        let page = unsafe { vdma_alloc_pages(flags, 0) };
        // INVARIANT: The allocator has returned a page, and a reference with it.
        NonNull::new(page).map(Self).ok_or(ENOMEM)
    }

    pub(super) fn page(&self) -> Page<'_> {
        // SAFETY: The object has a reference for as long as it is borrowed.
        unsafe { Page::from_raw(self.0) }
    }
}

impl Drop for OwnedPage {
    fn drop(&mut self) {
        put_pages(self.0.as_ptr(), 1);
    }
}
