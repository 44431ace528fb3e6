// SPDX-License-Identifier: GPL-2.0

//! One request to the device: header, response, and the pages in between.
//!
//! ```text
//!    create             try_submit             device uses it
//!  ----------> created ------------> submitted ---------------> used
//!                 |                      |                        |
//!                 | cannot be            | device reset,          | pop_batch
//!                 | submitted            | drain                  |
//!                 v                      v                        v
//!              dropped               abandoned                completed
//! ```
//!
//! | state | owner of the request | its pages |
//! |---|---|---|
//! | created; stays so while the ring is full | the submitter's task | held, and dirtied if the device will write to them |
//! | submitted | the virtqueue; only the device touches the request | held; the device reads and writes them |
//! | used | the virtqueue; the device has finished with the request | held |
//! | completed | the interrupt handler, polling task or work item | released, then the target completes |
//! | abandoned | the task that drains the queue | released, then the target completes |

use core::mem;

use kernel::{prelude::*, sync::Arc};

use crate::{
    io::transfer::{Outcome, Transfer},
    linux::{
        chardev::AsyncKiocb,
        list::Linked,
        page_list::PageList,
        slab::{Cache, Cached, SlabArc, SlabBox},
        workqueue::DeferredQueue,
    },
    observe::{
        Observer,
        counters::{Counters, Extent},
    },
    operations::buffer::DmaBuffer,
    protocol::{Operation, RequestHeader, Response, Status},
    virtio::DataChain,
};

/// Completion target of a request.
pub(crate) enum RequestTarget {
    /// The transfer that it belongs to, in which it begins at this byte.
    Transfer(SlabArc<Transfer>, usize),
    /// The `kiocb` of an asynchronous read or write that has no other request.
    Kiocb(AsyncKiocb),
    /// The `kiocb` of an asynchronous write that has moved this number of bytes, and waits for a
    /// FLUSH: the request.
    Written(AsyncKiocb, usize),
    /// None: the request has completed, or has not been given one.
    None,
}

impl RequestTarget {
    /// The `kiocb`, if it is one.
    pub(super) fn into_kiocb(self) -> Option<AsyncKiocb> {
        match self {
            Self::Kiocb(kiocb) | Self::Written(kiocb, _) => Some(kiocb),
            _ => None,
        }
    }
}

/// A request and all that it holds until it completes: header, response, data and [`RequestState`].
/// The table at the head of this file says who owns it in which state.
pub(crate) type Request = DataChain<RequestHeader, Response, DmaBuffer, RequestState>;

/// What the driver keeps of a request.
pub(crate) struct RequestState {
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
}

static CACHE: Cache<Request> = Cache::new();

/// Requests whose pages have to be marked dirty again, which takes the folio lock. Pages are marked
/// before the request starts; only those that writeback has cleaned in the meantime come here (the
/// way of `bio_check_pages_dirty` in `block/bio.c`).
pub(crate) static REDIRTY: DeferredQueue<SlabBox<Request>> = DeferredQueue::new();

impl Linked for SlabBox<Request> {
    fn set_next(&mut self, next: Option<Self>) {
        self.state.next = next;
    }

    fn take_next(&mut self) -> Option<Self> {
        self.state.next.take()
    }
}

impl Cached for Request {
    fn cache() -> &'static Cache<Self> {
        &CACHE
    }
}

impl SlabBox<Request> {
    /// A request without data: [`Self::data`] and then [`Self::prepare`] are next. With `polled`
    /// the submitter reaps it with `iopoll`; with `verified` the value of the response is a CRC32C
    /// of the data to compare with. May sleep.
    pub(crate) fn create(
        target: RequestTarget,
        observer: Arc<Observer>,
        polled: bool,
        verified: bool,
    ) -> Result<Self> {
        let header = RequestHeader::new(Operation::Nop, 0, 0, 0);
        let response = Response::new(Status::UNWRITTEN, 0, 0);
        let state = try_init!(RequestState {
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
        }? Error);
        Request::create(header, response, state)
    }

    /// The data that the device reads, and that it writes: filled in here, where they stay.
    pub(crate) fn data(&mut self) -> (&mut PageList<DmaBuffer>, &mut PageList<DmaBuffer>) {
        let request = &mut **self;
        (&mut request.outgoing, &mut request.incoming)
    }

    /// Sets what the device is to do with the data. May sleep: pages that the device will write to
    /// are marked dirty now, where that is allowed.
    pub(crate) fn prepare(&mut self, header: RequestHeader) {
        self.incoming.mark_dirty();
        self.header = header;
    }

    /// Sets the completion target of a request that has none.
    pub(crate) fn set_target(&mut self, target: RequestTarget) {
        self.state.target = target;
    }

    /// Whether the submitter reaps it with `iopoll`.
    pub(crate) fn is_polled(&self) -> bool {
        self.state.polled
    }

    /// Counts and traces the request, before it goes to the queue of this number: it may come back
    /// at once.
    pub(crate) fn account_submit(&mut self, queue: u32) {
        if let RequestTarget::Transfer(transfer, _) = &self.state.target {
            transfer.account_request();
        }
        let extent = self.extent();
        self.count(|counters| counters.submit(extent));
        let device = &self.state.observer.device;
        let submitted_at = if device.is_observed() {
            let pages = self.outgoing.pages() + self.incoming.pages();
            device.submitted(queue, &self.header, pages, extent.segments)
        } else {
            0
        };
        self.state.queue = queue;
        self.state.submitted_at = submitted_at;
    }

    /// Undoes [`Self::account_submit`], of a request that was not submitted after all.
    pub(crate) fn unaccount(&self) {
        let extent = self.extent();
        self.count(|counters| counters.unaccount(extent));
        if let RequestTarget::Transfer(transfer, _) = &self.state.target {
            transfer.unaccount_request();
        }
    }

    /// Counts something, for the file that the request came from and for the device.
    pub(crate) fn count(&self, count: impl Fn(&Counters)) {
        self.state.observer.count(count);
    }

    /// The time-out epoch of its queue in which the request was submitted.
    pub(crate) fn epoch(&self) -> usize {
        self.state.epoch
    }

    /// Notes the time-out epoch in which the request is submitted.
    pub(crate) fn set_epoch(&mut self, epoch: usize) {
        self.state.epoch = epoch;
    }

    /// Notes how many bytes the device claims to have written: [`Self::complete`] is next.
    pub(crate) fn set_written(&mut self, written: u32) {
        self.state.written = written;
    }

    /// Keeps the outcome while the pages wait to be marked dirty again.
    pub(super) fn defer(&mut self, outcome: Outcome) {
        self.state.deferred = Some(outcome);
    }

    /// Takes the completion target, which is completed once.
    pub(super) fn take_target(&mut self) -> RequestTarget {
        mem::replace(&mut self.state.target, RequestTarget::None)
    }
}

impl Request {
    /// Bytes of the data, of a request that has it on one side.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.outgoing.bytes() + self.incoming.bytes()
    }

    /// Pages and scatter-gather entries of the data.
    pub(super) fn extent(&self) -> Extent {
        Extent {
            pinned: self.outgoing.pinned_pages() + self.incoming.pinned_pages(),
            segments: self.outgoing.entries() + self.incoming.entries(),
            bounced: self.outgoing.bounced_pages() + self.incoming.bounced_pages(),
        }
    }
}
