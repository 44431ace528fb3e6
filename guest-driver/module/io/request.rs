// SPDX-License-Identifier: GPL-2.0

//! One request to the device: header, response, and the pages in between.
//!
//! ```text
//!               create                    try_submit                the device uses it
//! (slab cache) ───────> created ─────────────────────> submitted ─────────────────────> used
//!                         │    <─── refused: full ───      │                             │ pop_batch
//!                         │ refused for good               │ reset                       v
//!                         v                                v                         completed
//!                      dropped                         abandoned                  (deferred first, if
//!                                                  detached by `drain`          pages have to be dirtied)
//! ```
//!
//! | state | owner of the request | its pages |
//! |---|---|---|
//! | created | the submitter's task (`SlabBox`) | held by the request; dirtied if the device will write |
//! | submitted | the virtqueue; only the device touches it | held; the device reads and writes them |
//! | used | the virtqueue still; the device has finished with it | held; the device is done with them |
//! | completed | the interrupt handler, or the polling task, that took it off the ring | released before the target completes |
//! | abandoned | `Queue::drain`, after the reset of the device | released before the target completes |

use core::{
    marker::PhantomPinned,
    mem,
    ptr::{self, NonNull},
};

use kernel::{
    ffi::c_void,
    prelude::*,
    sync::{Arc, aref::ARef},
};

use crate::{
    io::transfer::{Outcome, Transfer},
    linux::{
        chardev::AsyncKiocb,
        list::Linked,
        page_list::PageList,
        scatterlist::SgEntry,
        slab::{Cache, Cached, SlabBox},
        workqueue::DeferredQueue,
    },
    observe::{
        Observer,
        counters::{Counters, Extent},
    },
    operations::buffer::DmaBuffer,
    protocol::{Operation, RequestHeader, Response, Status},
    virtio::{Buffer, SgLists},
};

/// Completion target of a request.
pub(crate) enum RequestTarget {
    /// The transfer that it is a part of, in which it begins at this byte.
    Transfer(ARef<Transfer>, usize),
    /// The `kiocb` of an asynchronous read or write that has no other request.
    Kiocb(AsyncKiocb),
    /// None: the request has completed.
    Completed,
}

/// Device-writable bytes, alone on their cache line: a line is mapped for one direction only.
#[repr(C, align(64))]
struct DeviceWritable(Response);

/// A request and all that it holds until it completes. The table at the head of this file says who owns
/// it in which state.
#[pin_data]
#[repr(C)]
pub(crate) struct Request {
    response: DeviceWritable,
    pub(super) header: RequestHeader,
    header_sg: SgEntry,
    response_sg: SgEntry,
    /// Data that the device reads.
    pub(super) outgoing: PageList<DmaBuffer>,
    /// Data that the device writes.
    pub(super) incoming: PageList<DmaBuffer>,
    target: RequestTarget,
    pub(super) observer: Arc<Observer>,
    /// The submitter reaps with `iopoll`: no interrupt is needed.
    polled: bool,
    /// The value of the response is the CRC32C of the data, and is compared with the CPU's.
    pub(super) verified: bool,
    /// The queue that it went to.
    pub(super) queue: u32,
    /// When it was submitted, in nanoseconds, if it is traced.
    pub(super) submitted_at: u64,
    /// The time-out epoch of its queue in which it was submitted.
    epoch: usize,
    /// Bytes that the device claims to have written.
    pub(super) written: u32,
    /// The outcome, of a request whose pages wait to be marked dirty again.
    pub(super) deferred: Option<Outcome>,
    /// The next in a list of requests that have come back.
    next: Option<SlabBox<Request>>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: Everything inside may be used from any CPU.
unsafe impl Send for Request {}
// SAFETY: `&Request` only reads.
unsafe impl Sync for Request {}

static CACHE: Cache<Request> = Cache::new();

/// Requests whose pages have to be marked dirty again, which takes the folio lock. Pages are marked before
/// the request starts; only those that writeback has cleaned in the meantime come here (the way of
/// `bio_check_pages_dirty` in `block/bio.c`).
pub(crate) static REDIRTY: DeferredQueue<SlabBox<Request>> = DeferredQueue::new();

impl Linked for SlabBox<Request> {
    fn set_next(&mut self, next: Option<Self>) {
        self.fields().next = next;
    }

    fn take_next(&mut self) -> Option<Self> {
        self.fields().next.take()
    }
}

impl Cached for Request {
    fn cache() -> &'static Cache<Self> {
        &CACHE
    }
}

impl SlabBox<Request> {
    /// A request without data: [`Self::data`] and then [`Self::prepare`] are next. With `polled` the
    /// submitter reaps it with `iopoll`; with `verified` the value of the response is a CRC32C of the
    /// data to compare with. May sleep.
    pub(crate) fn create(
        target: RequestTarget,
        observer: Arc<Observer>,
        polled: bool,
        verified: bool,
    ) -> Result<Self> {
        SlabBox::new::<Error>(try_pin_init!(Request {
            response: DeviceWritable(Response::new(Status::UNWRITTEN, 0, 0)),
            header: RequestHeader::new(Operation::Nop, 0, 0, 0),
            header_sg: SgEntry::empty(),
            response_sg: SgEntry::empty(),
            outgoing: PageList::none(),
            incoming: PageList::none(),
            target,
            observer,
            polled,
            verified,
            queue: 0,
            submitted_at: 0,
            epoch: 0,
            written: 0,
            deferred: None,
            next: None,
            _pin: PhantomPinned,
        }? Error))
    }

    /// The request's fields.
    fn fields(&mut self) -> &mut Request {
        // SAFETY: Pinned is what the entries point at, header and response, and the lists in a queue. This
        // module moves no request out of its box, and others get at the lists alone, before they are in one.
        unsafe { self.as_mut().get_unchecked_mut() }
    }

    /// The data that the device reads, and that it writes: filled in here, where they stay.
    pub(crate) fn data(&mut self) -> (&mut PageList<DmaBuffer>, &mut PageList<DmaBuffer>) {
        let request = self.fields();
        (&mut request.outgoing, &mut request.incoming)
    }

    /// Sets what the device is to do with the data. May sleep: pages that the device will write to are
    /// marked dirty now, where that is allowed.
    pub(crate) fn prepare(&mut self, header: RequestHeader) {
        self.incoming.mark_dirty();
        let request = self.fields();
        request.header = header;
        // SAFETY: Header and response are in the request's slab object, which stays in place, and
        // which only the device touches while it is in a queue.
        unsafe { request.header_sg.set(&request.header) };
        // SAFETY: Likewise for the response.
        unsafe { request.response_sg.set(&request.response.0) };
    }

    /// Whether the submitter reaps it with `iopoll`.
    pub(crate) fn is_polled(&self) -> bool {
        self.polled
    }

    /// Counts and traces the request, before it goes to the queue of this number: it may come back at
    /// once.
    pub(crate) fn account_submit(&mut self, queue: u32) {
        if let RequestTarget::Transfer(transfer, _) = &self.target {
            transfer.account_request();
        }
        let extent = self.extent();
        self.count(|counters| counters.submit(extent));
        let device = &self.observer.device;
        let submitted_at = if device.is_observed() {
            let pages = self.outgoing.pages() + self.incoming.pages();
            device.submitted(queue, &self.header, pages, extent.segments)
        } else {
            0
        };
        let request = self.fields();
        request.queue = queue;
        request.submitted_at = submitted_at;
    }

    /// Undoes [`Self::account_submit`], of a request that was not submitted after all.
    pub(crate) fn unaccount(&self) {
        let extent = self.extent();
        self.count(|counters| counters.unaccount(extent));
        if let RequestTarget::Transfer(transfer, _) = &self.target {
            transfer.unaccount_request();
        }
    }

    /// Counts something, for the file that the request came from and for the device.
    pub(crate) fn count(&self, count: impl Fn(&Counters)) {
        self.observer.count(count);
    }

    /// The time-out epoch of its queue in which the request was submitted.
    pub(crate) fn epoch(&self) -> usize {
        self.epoch
    }

    /// Notes the time-out epoch in which the request is submitted.
    pub(crate) fn set_epoch(&mut self, epoch: usize) {
        self.fields().epoch = epoch;
    }

    /// Notes how many bytes the device claims to have written: [`Self::complete`] is next.
    pub(crate) fn set_written(&mut self, written: u32) {
        self.fields().written = written;
    }

    /// Keeps the outcome while the pages wait to be marked dirty again.
    pub(super) fn defer(&mut self, outcome: Outcome) {
        self.fields().deferred = Some(outcome);
    }

    /// Takes the completion target, which is completed once.
    pub(super) fn take_target(&mut self) -> RequestTarget {
        mem::replace(&mut self.fields().target, RequestTarget::Completed)
    }
}

impl Request {
    /// Pages and scatter-gather entries of the data.
    pub(super) fn extent(&self) -> Extent {
        Extent {
            pinned: self.outgoing.pinned_pages() + self.incoming.pinned_pages(),
            segments: self.outgoing.entries() + self.incoming.entries(),
            bounced: self.outgoing.bounced_pages() + self.incoming.bounced_pages(),
        }
    }

    /// The response as the device has left it.
    pub(super) fn response(&self) -> Response {
        // SAFETY: The response is in this object. A device that breaks the rules may still write to
        // it, hence one volatile read, and only the copy is used.
        unsafe { ptr::read_volatile(&self.response.0) }
    }
}

// SAFETY: The lists name the header, the response and the held pages: all of them are part of the slab
// object or kept by it. The box is the only owner, so they are not touched while it is a raw pointer.
unsafe impl Buffer for SlabBox<Request> {
    fn sg_lists(&mut self) -> SgLists {
        // SAFETY: Nothing is moved out of the request.
        let request = unsafe { self.as_mut().get_unchecked_mut() };
        let mut lists = SgLists::new();
        lists.push_readable(request.header_sg.as_mut_ptr());
        lists.push_readable(request.outgoing.as_sg());
        lists.push_writable(request.response_sg.as_mut_ptr());
        if request.incoming.is_writable() {
            lists.push_writable(request.incoming.as_sg());
        }
        lists
    }

    fn into_raw(self) -> NonNull<c_void> {
        SlabBox::into_raw(self).cast()
    }

    unsafe fn from_raw(raw: NonNull<c_void>) -> Self {
        // SAFETY: The pointer comes from `into_raw` above, and is taken back once.
        unsafe { SlabBox::from_raw(raw.cast()) }
    }
}
