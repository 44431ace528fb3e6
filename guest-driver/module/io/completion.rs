// SPDX-License-Identifier: GPL-2.0

//! Completion of a request: the device's response is checked, the pages are released, and the
//! completion target completes.

use kernel::prelude::*;

use crate::{
    io::{
        request::{REDIRTY, Request, RequestTarget},
        transfer::Outcome,
    },
    linux::{compat, slab::SlabBox, workqueue::Deferred},
    observe::{counters::Direction, log},
    protocol::{Operation, Response, Status, TraceRecord},
};

/// Direction of the device memory that an operation moves.
fn direction(operation: u16) -> Direction {
    match Operation::from_code(operation) {
        Some(Operation::Read | Operation::ReadCrc32c) => Direction::Read,
        Some(Operation::Write | Operation::WriteCrc32c) => Direction::Write,
        _ => Direction::None,
    }
}

impl Deferred for SlabBox<Request> {
    fn run(self) {
        self.redirty_and_finish();
    }
}

impl SlabBox<Request> {
    /// Completes a request that the device has used. Any context.
    ///
    /// Pages that were cleaned while the device wrote to them have to be marked dirty again before
    /// the target completes, and that can sleep: such a request takes a detour through a work
    /// queue. It is rare, for pinned pages are cleaned only by writeback of mapped files.
    pub(crate) fn complete(mut self) {
        let mut outcome = self.check_response();
        self.incoming.fetch_bounced(outcome.moved);
        if self.state.verified && outcome.result.is_ok() {
            outcome = self.verify(outcome);
        }
        if self.incoming.are_dirty() {
            self.finish(outcome);
        } else {
            self.defer(outcome);
            if let Err(request) = REDIRTY.push(self) {
                request.abandon(ENODEV);
            }
        }
    }

    /// Marks the pages dirty again and completes with the outcome that [`Self::complete`] kept. May
    /// sleep.
    pub(crate) fn redirty_and_finish(self) {
        self.incoming.mark_dirty();
        let outcome = self.state.deferred.unwrap_or(Outcome::failed(EIO));
        self.finish(outcome);
    }

    /// Completes a request with `error` that the device was reset under. Any context.
    pub(crate) fn abandon(self, error: Error) {
        self.finish(Outcome::failed(error));
    }

    fn finish(mut self, outcome: Outcome) {
        self.record(&outcome);
        let direction = direction(self.header.operation.get());
        self.count(|counters| counters.complete(direction, outcome.moved, outcome.result.is_ok()));
        // The pages are released before the target completes: the caller may count on that.
        let (kiocb, result) = match self.take_target() {
            RequestTarget::Transfer(transfer, position) => {
                drop(self);
                transfer.request_completed(position, outcome);
                return;
            }
            RequestTarget::Kiocb(kiocb) => (kiocb, outcome.bytes()),
            RequestTarget::Written(kiocb, bytes) => (kiocb, outcome.result.map(|_| bytes)),
            RequestTarget::None => return,
        };
        let observer = self
            .state
            .observer
            .is_armed()
            .then(|| self.state.observer.clone());
        drop(self);
        kiocb.complete(result);
        if let Some(observer) = observer {
            observer.ended();
        }
    }
}

impl Request {
    /// Compares the device's checksum of the data with the CPU's.
    fn verify(&self, outcome: Outcome) -> Outcome {
        self.state
            .observer
            .count(|counters| counters.verified.add(1));
        let data = if self.incoming.bytes() > 0 {
            &self.incoming
        } else {
            &self.outgoing
        };
        if u64::from(data.crc32c()) == outcome.value {
            return outcome;
        }
        log::bad_response(&self.header, "the data differ from the device's checksum");
        Outcome::failed(EIO)
    }

    /// Traces the outcome.
    fn record(&self, outcome: &Outcome) {
        if self.state.submitted_at == 0 {
            return;
        }
        let record = TraceRecord {
            offset: self.header.offset.get(),
            length: self.header.length.get(),
            operation: self.header.operation.get(),
            queue: self.state.queue as u16,
            result: outcome.result.err().map_or(0, |error| error.to_errno()),
            pages: (self.outgoing.pages() + self.incoming.pages()) as u32,
            segments: self.extent().segments as u32,
            transferred: outcome.moved as u64,
            ..Default::default()
        };
        self.state
            .observer
            .device
            .completed(self.state.submitted_at, record);
    }

    /// Checks the response, whose values the device may choose at will.
    fn check_response(&self) -> Outcome {
        let response = self.response();
        let written = self.state.written as usize;
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
                Some((EIO, "more bytes written than the buffers have"))
            }
            Status::OK if u64::from(transferred) < length => Some((EIO, "short transfer")),
            Status::OK => None,
            Status::UNSUPPORTED => Some((compat::not_supported(), "operation not supported")),
            status => Some((EIO, status.describe())),
        };
        match problem {
            None => Outcome {
                result: Ok(transferred as usize),
                moved: transferred as usize,
                value: response.value.get(),
            },
            Some((error, what)) => {
                log::bad_response(&self.header, what);
                let valid = response.status() == Status::OK
                    && u64::from(transferred) < length
                    && written >= Response::SIZE + incoming;
                let moved = if valid { transferred as usize } else { 0 };
                Outcome {
                    result: Err(error),
                    moved,
                    value: 0,
                }
            }
        }
    }
}
