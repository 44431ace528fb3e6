// SPDX-License-Identifier: GPL-2.0

//! The pages of a request's data, in a scatter-gather list: pinned, lent by their owner, or those
//! of a DMA buffer (`iov_iter_extract_pages`, `unpin_user_page_range_dirty_lock`).

use kernel::{bindings, page::PAGE_SIZE, prelude::*, sync::Arc};

use crate::linux::{
    bindings::{vdma_pages_are_dirty, vdma_pages_mark_dirty},
    bounce::{Bounced, Reach},
    iov_iter::IovIter,
    page::Page,
    page_runs::PageRuns,
    scatterlist::SgList,
};

/// Most bytes of a scatter-gather entry, whose length is a `u32`: whole pages.
const MAX_ENTRY: usize = 1 << 31;

/// Something shared that has pages for DMA.
pub(crate) trait PageOwner: Send + Sync + 'static {
    /// The pages.
    fn page_runs(&self) -> &PageRuns;

    /// Drops a share, which may be the last one. Any context.
    fn release(this: Arc<Self>);
}

/// Why pages stay where they are while the device uses them.
enum Hold<O: PageOwner> {
    /// Their owner sees to it until the call completes.
    Lent,
    /// They are pinned (`FOLL_PIN`), as many as the entries of the list touch.
    Pinned(usize),
    /// They are part of a buffer. Always there, but when the last of this is dropped.
    Shared(Option<Arc<O>>),
}

/// Pages in a scatter-gather list, held until this is dropped.
///
/// Dropping is allowed in any context, for it takes no folio lock.
///
/// # Invariants
///
/// The pages of `list`, and so those that `bounced` names, are held as `hold` says: each entry has
/// one pin for every page that it touches, or `hold` has a share in the owner of the pages, or the
/// owner keeps them until the call that they were taken from is completed. Unless `writable`,
/// nothing is written to them.
///
/// That pages which are lent are dropped before that call completes is the one part of this that no
/// type enforces: see [`Self::take`].
pub(crate) struct PageList<O: PageOwner> {
    list: SgList,
    hold: Hold<O>,
    writable: bool,
    /// What the device gets instead, where it cannot reach the pages.
    bounced: Option<KBox<Bounced>>,
}

impl<O: PageOwner> PageList<O> {
    /// No pages.
    #[inline(always)]
    pub(crate) const fn none() -> Self {
        // INVARIANT: There is nothing to hold.
        Self {
            list: SgList::new(),
            hold: Hold::Lent,
            writable: false,
            bounced: None,
        }
    }

    /// Drops the pages that are here, if there are any.
    #[inline]
    fn reset(&mut self) {
        // A failure may have left a hold without pages.
        if self.list.len() > 0 || !matches!(self.hold, Hold::Lent) {
            *self = Self::none();
        }
    }

    /// Takes up to `max_bytes` off `iter`, in up to `entries` entries of up to `max_entry` bytes,
    /// instead of the pages that are here. May sleep.
    ///
    /// Space is made for all of `entries`, so it should be no more than [`IovIter::page_bound`].
    /// Where the pages are lent ([`IovIter::will_pin`] is false), they are dropped before the
    /// call completes.
    pub(crate) fn take(
        &mut self,
        iter: &mut IovIter<'_>,
        max_bytes: usize,
        entries: usize,
        max_entry: usize,
    ) -> Result {
        self.reset();
        self.list.clear(entries)?;
        let pins = iter.will_pin();
        if pins {
            // What is taken before an error is unpinned as well.
            self.hold = Hold::Pinned(0);
        }
        self.writable = iter.is_dest();
        let max_entry = max_entry.clamp(PAGE_SIZE, MAX_ENTRY);
        // INVARIANT: Each page that is extracted is pinned once for the entry that it goes to, if
        // it is.
        // SAFETY: What is pinned is unpinned when this object is reset or dropped. What is lent
        // stays with its owner until the call completes, and `io/completion.rs` drops the request,
        // and this with it, before that. No type says so: a count of lent lists in the call would
        // cost two locked operations each.
        let taken = unsafe { iter.extract_into(&mut self.list, max_bytes, max_entry) };
        let pages = match taken {
            Ok(pages) => pages,
            // What came before the bad address is a request of its own; the error comes back with
            // the next, which begins there.
            Err(_) if self.list.bytes() > 0 => self.pages(),
            Err(error) => return Err(error),
        };
        if pins {
            self.hold = Hold::Pinned(pages);
        }
        Ok(())
    }

    /// Takes the pages behind up to `max_bytes` of `owner` from `offset` on, with limits as for
    /// [`Self::take`]: fewer bytes if these take more entries. `EINVAL` for an offset beyond the
    /// end. May sleep.
    pub(crate) fn share(
        &mut self,
        owner: &Arc<O>,
        offset: usize,
        max_bytes: usize,
        max_entries: usize,
        max_entry: usize,
    ) -> Result {
        self.reset();
        let max_entry = max_entry.clamp(PAGE_SIZE, MAX_ENTRY);
        let runs = owner.page_runs();
        let pieces = runs.pieces(offset, max_bytes, max_entry)?;
        self.list
            .clear(runs.piece_bound(offset, max_bytes, max_entry, max_entries))?;
        // Before there are pages, so that a failure leaves none without a share.
        self.hold = Hold::Shared(Some(owner.clone()));
        self.writable = true;
        for (pages, offset, length) in pieces {
            let Some(first) = pages.get(0).filter(|_| self.list.free() > 0) else {
                break;
            };
            // INVARIANT: `hold` has the share in the owner of the page.
            // SAFETY: The pages have the bytes. They are held as long as their owner, which has no
            // way to release them while it is shared.
            unsafe { self.list.push(first, offset, length, max_entry) }?;
        }
        Ok(())
    }

    /// Puts pages that the device can reach in the place of those that it cannot; with `outgoing`,
    /// the bytes that the device is to read are copied there. May sleep.
    #[inline(always)]
    pub(crate) fn bring_within(&mut self, reach: Reach, outgoing: bool) -> Result {
        if reach.is_everywhere() {
            return Ok(());
        }
        self.bounce(reach, outgoing)
    }

    #[cold]
    fn bounce(&mut self, reach: Reach, outgoing: bool) -> Result {
        // SAFETY: The result is dropped, or replaced, with the pages of the list.
        self.bounced = unsafe { Bounced::new(&self.list, reach) }?;
        if let Some(bounced) = self.bounced.as_ref().filter(|_| outgoing) {
            bounced.copy_out(&self.list);
        }
        Ok(())
    }

    /// Copies the first `bytes` of what the device has written where they belong, if it wrote
    /// elsewhere. Any context.
    ///
    /// The rest of what is there instead may not be the device's: it stays where it is.
    #[inline]
    pub(crate) fn fetch_bounced(&self, bytes: usize) {
        if let Some(bounced) = self.bounced.as_ref().filter(|_| self.writable) {
            // SAFETY: The memory may be written to, by the check above and the type's invariant.
            unsafe { bounced.copy_in(&self.list, bytes) };
        }
    }

    /// Bytes that the pages cover.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.list.bytes()
    }

    /// Whether the device may write to the pages.
    #[inline]
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Pages that are pinned here.
    #[inline]
    pub(crate) fn pinned_pages(&self) -> usize {
        match self.hold {
            Hold::Pinned(pages) => pages,
            _ => 0,
        }
    }

    /// Pages that are copied because the device cannot reach them.
    #[inline]
    pub(crate) fn bounced_pages(&self) -> usize {
        self.bounced.as_ref().map_or(0, |bounced| bounced.pages())
    }

    /// Pages of the data.
    pub(crate) fn pages(&self) -> usize {
        self.list.page_runs().map(|run| run.len()).sum()
    }

    /// Scatter-gather entries.
    #[inline]
    pub(crate) fn entries(&self) -> usize {
        self.list.len()
    }

    /// The bytes, page by page: the page, where they begin in it, and how many.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Page<'_>, usize, usize)> {
        self.list.pieces()
    }

    /// Bytes of each scatter-gather entry.
    pub(crate) fn entry_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.list.entry_lengths()
    }

    /// The list as a virtqueue takes it, or null when it is empty. It has to stay in place while it
    /// is in the queue, and its pages are held as long as it is.
    #[inline]
    pub(crate) fn as_sg(&mut self) -> *mut bindings::scatterlist {
        match &mut self.bounced {
            Some(bounced) => bounced.terminate(),
            None => self.list.terminate(),
        }
    }

    #[inline]
    fn is_pinned(&self) -> bool {
        matches!(self.hold, Hold::Pinned(_))
    }

    /// Marks the pages dirty, for the device is about to write, or has written, to them. May sleep
    /// (folio locks).
    ///
    /// Pages that are lent are neither dirtied nor counted: their owner does that when the call
    /// completes. Those of a buffer are marked when it goes.
    #[inline]
    pub(crate) fn mark_dirty(&self) {
        if self.is_pinned() {
            for run in self.list.page_runs() {
                // SAFETY: The pages are pinned, by the type's invariant.
                unsafe { vdma_pages_mark_dirty(run.as_ptr(), run.len()) };
            }
        }
    }

    /// Whether all pages are (still) marked dirty. Any context.
    #[inline]
    pub(crate) fn are_dirty(&self) -> bool {
        !self.is_pinned()
            || self.list.page_runs().all(|run| {
                // SAFETY: The pages are pinned, by the type's invariant.
                unsafe { vdma_pages_are_dirty(run.as_ptr(), run.len()) }
            })
    }

    /// The CRC32C of the bytes, read by the CPU. Any context.
    pub(crate) fn crc32c(&self) -> u32 {
        let crc = self.pieces().fold(!0, |crc, (page, offset, length)| {
            page.crc32c(crc, offset, length)
        });
        !crc
    }
}

impl<O: PageOwner> Drop for PageList<O> {
    #[inline]
    fn drop(&mut self) {
        match &mut self.hold {
            Hold::Lent => {}
            Hold::Pinned(_) => {
                for run in self.list.page_runs() {
                    // SAFETY: Each entry has one pin for each page that it touches, by the type's
                    // invariant, and the list is in no queue: that would have the object that it is
                    // part of. Without the last argument no lock is taken.
                    unsafe {
                        bindings::unpin_user_page_range_dirty_lock(run.as_ptr(), run.len(), false)
                    };
                }
            }
            Hold::Shared(owner) => {
                if let Some(owner) = owner.take() {
                    O::release(owner);
                }
            }
        }
    }
}
