// SPDX-License-Identifier: GPL-2.0

//! One request to the device: header, response, and the pages in between.

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
    io::{deferred, pages::HeldPages, transfer::Transfer},
    linux::{
        chardev::AsyncIocb,
        compat,
        scatterlist::SgEntry,
        slab::{Cache, Cached, SlabBox},
    },
    observe::{
        Observer,
        counters::{Counters, Direction, Extent},
        log,
    },
    protocol::{Operation, RequestHeader, Response, Status, TraceRecord},
    virtio::{Buffer, SgLists},
};

/// Who hears of the answer to a request.
pub(crate) enum Reply {
    /// The transfer that it is a part of, in which it begins at this byte.
    Part(ARef<Transfer>, usize),
    /// The caller of an asynchronous read or write that has no other part.
    Caller(AsyncIocb),
    /// Nobody any more.
    Given,
}

/// Device-writable bytes, alone on their cache line: a line is mapped for one direction only.
#[repr(C, align(64))]
struct DeviceWritable(Response);

/// A request and all that it holds until it completes.
///
/// In a queue it belongs to the device and the queue; before and after to whoever has the box.
#[pin_data]
#[repr(C)]
pub(crate) struct Request {
    response: DeviceWritable,
    header: RequestHeader,
    header_sg: SgEntry,
    response_sg: SgEntry,
    /// Data that the device reads.
    outgoing: HeldPages,
    /// Data that the device writes.
    incoming: HeldPages,
    reply: Reply,
    observer: Arc<Observer>,
    /// The task that waits looks for the completion itself: no interrupt is needed.
    polled: bool,
    /// The value of the answer is the CRC32C of the data, and is compared with the CPU's.
    verified: bool,
    /// The queue that it went to, and when, if anybody wants to know.
    queue: u32,
    submitted_at: u64,
    /// When it went to the device, in the reckoning of its queue.
    epoch: usize,
    /// Bytes that the device says to have written.
    written: u32,
    /// The checked answer, once there is one, of a request whose pages wait to be marked dirty again.
    deferred: Option<Answer>,
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

impl Cached for Request {
    fn cache() -> &'static Cache<Self> {
        &CACHE
    }
}

/// Direction of the device memory that an operation moves.
fn direction(operation: u16) -> Direction {
    match Operation::from_code(operation) {
        Some(Operation::Read | Operation::ReadCrc32c) => Direction::Read,
        Some(Operation::Write | Operation::WriteCrc32c) => Direction::Write,
        _ => Direction::None,
    }
}

impl SlabBox<Request> {
    /// A request without data: [`Self::data`] and then [`Self::prepare`] are next. With `polled` the
    /// submitter looks for the completion; with `verified` the answer's value is a CRC32C of the data to
    /// compare with. May sleep.
    pub(crate) fn create(
        reply: Reply,
        observer: Arc<Observer>,
        polled: bool,
        verified: bool,
    ) -> Result<Self> {
        SlabBox::new::<Error>(try_pin_init!(Request {
            response: DeviceWritable(Response::new(Status::UNWRITTEN, 0, 0)),
            header: RequestHeader::new(Operation::Nop, 0, 0, 0),
            header_sg: SgEntry::empty(),
            response_sg: SgEntry::empty(),
            outgoing: HeldPages::none(),
            incoming: HeldPages::none(),
            reply,
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
    pub(crate) fn data(&mut self) -> (&mut HeldPages, &mut HeldPages) {
        let request = self.fields();
        (&mut request.outgoing, &mut request.incoming)
    }

    /// Says what is to be done with the data. May sleep: pages that the device will write to are marked
    /// dirty now, where that is allowed.
    pub(crate) fn prepare(&mut self, header: RequestHeader) {
        self.incoming.mark_dirty();
        let request = self.fields();
        request.header = header;
        // SAFETY: Header and response are in the request's slab object, which stays in place, and
        // which nobody touches while it is in a queue.
        unsafe { request.header_sg.set(&request.header) };
        // SAFETY: As above.
        unsafe { request.response_sg.set(&request.response.0) };
    }

    /// Pages and scatter-gather entries of the data.
    fn extent(&self) -> Extent {
        Extent {
            pinned: self.outgoing.pinned_pages() + self.incoming.pinned_pages(),
            segments: self.outgoing.entries() + self.incoming.entries(),
            bounced: self.outgoing.bounced_pages() + self.incoming.bounced_pages(),
        }
    }

    /// Whether the submitter looks for the completion.
    pub(crate) fn is_polled(&self) -> bool {
        self.polled
    }

    /// Counts the request and tells the observers, before it goes to the queue of this number: it may
    /// come back at once.
    pub(crate) fn announce(&mut self, queue: u32) {
        if let Reply::Part(transfer, _) = &self.reply {
            transfer.request_submitted();
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

    /// Takes [`Self::announce`] back: it did not go after all.
    pub(crate) fn retract(&self) {
        let extent = self.extent();
        self.count(|counters| counters.retract(extent));
        if let Reply::Part(transfer, _) = &self.reply {
            transfer.request_retracted();
        }
    }

    /// Counts something, for the file that the request came from and for the device.
    pub(crate) fn count(&self, count: impl Fn(&Counters)) {
        self.observer.count(count);
    }

    /// When the request went to the device, in the reckoning of its queue.
    pub(crate) fn epoch(&self) -> usize {
        self.epoch
    }

    /// Notes when the request goes to the device.
    pub(crate) fn set_epoch(&mut self, epoch: usize) {
        self.fields().epoch = epoch;
    }

    /// Notes how many bytes the device claims to have written: [`Self::complete`] is next.
    pub(crate) fn set_written(&mut self, written: u32) {
        self.fields().written = written;
    }

    /// Puts the request in front of `next`.
    pub(crate) fn enlist(&mut self, next: Option<SlabBox<Request>>) {
        self.fields().next = next;
    }

    /// Takes the rest of the list off the request.
    pub(crate) fn delist(&mut self) -> Option<SlabBox<Request>> {
        self.fields().next.take()
    }

    /// Takes the answer of the device. Any context.
    ///
    /// Pages that were cleaned while the device wrote to them have to be marked dirty again before
    /// anybody hears of the completion, and that can sleep: such a request takes a detour through a
    /// work queue. It is rare, for pinned pages are cleaned only by writeback of mapped files.
    pub(crate) fn complete(mut self) {
        let mut answer = self.answer();
        self.incoming.fetch_bounced();
        if self.verified && answer.result.is_ok() {
            answer = self.verify(answer);
        }
        if self.incoming.are_dirty() {
            self.finish(answer);
        } else {
            self.fields().deferred = Some(answer);
            deferred::redirty(self);
        }
    }

    /// Marks the pages dirty again and completes with the answer that [`Self::complete`] kept. May
    /// sleep.
    pub(crate) fn redirty_and_finish(self) {
        self.incoming.mark_dirty();
        let answer = self.deferred.unwrap_or(Answer::failed(EIO));
        self.finish(answer);
    }

    /// Gives the request up: the device was reset. Any context.
    pub(crate) fn abandon(self, error: Error) {
        self.finish(Answer::failed(error));
    }

    fn finish(mut self, answer: Answer) {
        self.record(&answer);
        let direction = direction(self.header.operation.get());
        self.count(|counters| counters.complete(direction, answer.moved, answer.result.is_ok()));
        let reply = mem::replace(&mut self.fields().reply, Reply::Given);
        // The pages are let go before anybody hears of the completion: whoever waits for it may
        // count on them.
        match reply {
            Reply::Part(transfer, position) => {
                drop(self);
                transfer.request_completed(position, answer);
            }
            Reply::Caller(iocb) => {
                let observer = self.observer.is_armed().then(|| self.observer.clone());
                drop(self);
                iocb.complete(answer.bytes());
                if let Some(observer) = observer {
                    observer.ended();
                }
            }
            Reply::Given => {}
        }
    }

    /// Compares the device's checksum of the data with the CPU's.
    fn verify(&self, answer: Answer) -> Answer {
        self.count(|counters| counters.verified.add(1));
        let data = if self.incoming.bytes() > 0 {
            &self.incoming
        } else {
            &self.outgoing
        };
        if u64::from(data.crc32c()) == answer.value {
            return answer;
        }
        log::bad_answer(&self.header, "the data differ from the device's checksum");
        Answer::failed(EIO)
    }

    /// Tells the observers how it ended.
    fn record(&self, answer: &Answer) {
        if self.submitted_at == 0 {
            return;
        }
        let record = TraceRecord {
            offset: self.header.offset.get(),
            length: self.header.length.get(),
            operation: self.header.operation.get(),
            queue: self.queue as u16,
            result: answer.result.err().map_or(0, |error| error.to_errno()),
            pages: (self.outgoing.pages() + self.incoming.pages()) as u32,
            segments: self.extent().segments as u32,
            transferred: answer.moved as u64,
            ..Default::default()
        };
        self.observer.device.completed(self.submitted_at, record);
    }

    /// Checks what the device says; it may say anything.
    fn answer(&self) -> Answer {
        // SAFETY: The response is in this object. A device that breaks the rules may still write to
        // it, hence one volatile read, and only the copy is used.
        let response = unsafe { ptr::read_volatile(&self.response.0) };
        let written = self.written as usize;
        let length = self.header.length.get();
        let transferred = response.transferred.get();
        let incoming = if self.incoming.bytes() > 0 {
            transferred as usize
        } else {
            0
        };
        let problem = match response.status() {
            Status::OK if u64::from(transferred) > length => {
                Some((EIO, "more bytes than asked for"))
            }
            Status::OK if written < Response::SIZE + incoming => {
                Some((EIO, "fewer bytes written than transferred"))
            }
            Status::OK if written > Response::SIZE + self.incoming.bytes() => {
                Some((EIO, "more bytes written than there is room for"))
            }
            Status::OK if u64::from(transferred) < length => Some((EIO, "short transfer")),
            Status::OK => None,
            Status::UNSUPPORTED => Some((compat::not_supported(), "operation not supported")),
            status => Some((EIO, status.describe())),
        };
        match problem {
            None => Answer {
                result: Ok(transferred as usize),
                moved: transferred as usize,
                value: response.value.get(),
            },
            Some((error, what)) => {
                log::bad_answer(&self.header, what);
                let valid = response.status() == Status::OK
                    && u64::from(transferred) < length
                    && written >= Response::SIZE + incoming;
                let moved = if valid { transferred as usize } else { 0 };
                Answer {
                    result: Err(error),
                    moved,
                    value: 0,
                }
            }
        }
    }
}

/// The checked answer of the device.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    /// Bytes moved, or why not all were.
    pub(crate) result: Result<usize>,
    /// Bytes moved before an error; equal to the result without one.
    pub(crate) moved: usize,
    /// [`Response::value`].
    pub(crate) value: u64,
}

impl Answer {
    /// None that counts: nothing was moved, because of `error`.
    fn failed(error: Error) -> Self {
        Self {
            result: Err(error),
            moved: 0,
            value: 0,
        }
    }

    /// The result of a call: the bytes that were moved, the error if there are none.
    fn bytes(&self) -> Result<usize> {
        match self.moved {
            0 => self.result,
            moved => Ok(moved),
        }
    }
}

// SAFETY: The lists name the header, the response and the held pages: all of them are part of the slab
// object or kept by it. The box is the only owner, so nobody touches them while it is a raw pointer.
unsafe impl Buffer for SlabBox<Request> {
    fn sg_lists(&mut self) -> SgLists {
        // SAFETY: Nothing is moved out of the request.
        let request = unsafe { self.as_mut().get_unchecked_mut() };
        let mut lists = SgLists::new();
        lists.push_readable(request.header_sg.as_mut_ptr());
        lists.push_readable(request.outgoing.sg_list());
        lists.push_writable(request.response_sg.as_mut_ptr());
        lists.push_writable(request.incoming.sg_list());
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
