//! From a descriptor chain to an operation and back: header, data, response.

use std::fmt;

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use crate::{
    engine::{Engine, Outcome, Segments},
    sigbus,
    virtqueue::{Chain, ChainDefect},
};

/// Bytes of a response. With data they are at most `MAX_TRANSFER` more, far below `u32::MAX`.
#[allow(clippy::cast_possible_truncation)] // 16.
const RESPONSE_BYTES: u32 = Response::SIZE as u32;

/// The result of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The operation, when the request named one that exists.
    pub operation: Option<Operation>,
    /// The status in the response.
    pub status: Status,
    /// Data bytes processed.
    pub transferred: u32,
    /// Device-writable bytes written, counted from the first: the used length.
    pub written: u32,
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = self.operation.map_or("unknown operation", Operation::name);
        let Self {
            status,
            transferred,
            written,
            ..
        } = self;
        write!(
            f,
            "{operation}: {status:?}, {transferred} bytes transferred, {written} written"
        )
    }
}

/// A chain split into header, data and response. The header has been read, once.
#[derive(Clone, Copy, Debug)]
pub struct Request<'s, 'm> {
    header: Result<RequestHeader, Status>,
    outgoing: Segments<'s, 'm>,
    incoming: Segments<'s, 'm>,
    /// `None` when the chain has too few writable bytes for one.
    response: Option<Segments<'s, 'm>>,
    chain: &'s Chain<'m>,
}

impl<'s, 'm> Request<'s, 'm> {
    /// Splits `chain`.
    #[must_use]
    pub fn new(chain: &'s Chain<'m>) -> Self {
        let mut outgoing = Segments::new(chain.readable());
        let mut incoming = Segments::new(chain.writable());
        let response = Some(incoming).filter(|_| incoming.advance(Response::SIZE));
        let header = match chain.defect() {
            Some(ChainDefect::Malformed) => Err(Status::BAD_REQUEST),
            Some(ChainDefect::Address) => Err(Status::BAD_ADDRESS),
            None => outgoing
                .read()
                .map(|bytes| RequestHeader::from_bytes(&bytes))
                .ok_or(Status::BAD_REQUEST),
        };
        Self {
            header,
            outgoing,
            incoming,
            response,
            chain,
        }
    }

    /// Whether memory of the chain is missing: what was read of it, or written to it, is lost.
    #[inline]
    fn is_lost(&self) -> bool {
        let lists = [self.chain.readable(), self.chain.writable()];
        sigbus::poison_exists() && lists.into_iter().flatten().any(sigbus::is_poisoned)
    }

    /// The header, unless the request has none.
    #[must_use]
    pub fn header(&self) -> Option<&RequestHeader> {
        self.header.as_ref().ok()
    }

    /// Executes the request and writes its response.
    pub fn execute(&self, engine: &mut Engine) -> Completion {
        self.respond(|header, outgoing, incoming| engine.execute(header, &outgoing, &incoming))
    }

    /// Writes the response that `execute` makes of header, outgoing and incoming data. Without
    /// memory for a response nothing is executed and nothing written.
    pub fn respond(
        &self,
        execute: impl FnOnce(&RequestHeader, Segments<'s, 'm>, Segments<'s, 'm>) -> Outcome,
    ) -> Completion {
        let operation = self
            .header()
            .and_then(|header| Operation::from_code(header.operation.get()));
        let Some(response) = self.response else {
            return Completion {
                operation,
                status: self.header.err().unwrap_or(Status::BAD_REQUEST),
                transferred: 0,
                written: 0,
            };
        };
        let mut outcome = match &self.header {
            Ok(_) if self.is_lost() => Outcome::refused(Status::IO_ERROR),
            Ok(header) => execute(header, self.outgoing, self.incoming),
            Err(status) => Outcome::refused(*status),
        };
        if self.is_lost() {
            outcome = Outcome::refused(Status::IO_ERROR);
        }
        let data = match operation {
            Some(operation) if operation.shape().incoming => outcome.transferred,
            _ => 0,
        };
        let bytes = Response::new(outcome.status, outcome.transferred, outcome.value).to_bytes();
        let arrived = response.write(&bytes) && !is_lost(response);
        let written = if arrived { RESPONSE_BYTES + data } else { 0 };
        Completion {
            operation,
            status: outcome.status,
            transferred: outcome.transferred,
            written,
        }
    }
}

/// Whether a response has been written to memory that is missing.
fn is_lost(mut response: Segments<'_, '_>) -> bool {
    response.truncate(Response::SIZE as u64);
    sigbus::poison_exists() && response.pieces().any(|piece| sigbus::is_poisoned(&piece))
}
