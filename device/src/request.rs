//! From a descriptor chain to an operation and back: header, data parts, response.

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use crate::engine::{Engine, Outcome, Segments, writes_incoming};
use crate::queue::Chain;

/// Bytes of a response. With data they are at most `MAX_TRANSFER` more, far below `u32::MAX`.
#[allow(clippy::cast_possible_truncation)] // 16.
const RESPONSE_BYTES: u32 = Response::SIZE as u32;

/// What became of one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The operation, when the request named one that exists.
    pub operation: Option<Operation>,
    /// What the response said.
    pub status: Status,
    /// Data bytes worked on.
    pub transferred: u32,
    /// Device-writable bytes written, from the first on: the used length.
    pub written: u32,
}

/// Carries out the request in `chain` and writes its response. A chain without room for a response
/// is returned with nothing done and nothing written.
pub fn serve(engine: &mut Engine, chain: &Chain<'_>) -> Served {
    let mut outgoing = Segments::new(chain.readable());
    let mut incoming = Segments::new(chain.writable());
    let response = incoming;
    if !incoming.advance(Response::SIZE) {
        return Served {
            operation: None,
            status: chain.defect().unwrap_or(Status::BAD_REQUEST),
            transferred: 0,
            written: 0,
        };
    }
    let (operation, outcome) = match (chain.defect(), outgoing.read()) {
        (Some(status), _) => (None, Outcome::refused(status)),
        (None, None) => (None, Outcome::refused(Status::BAD_REQUEST)),
        (None, Some(bytes)) => {
            let header = RequestHeader::from_bytes(&bytes);
            let operation = Operation::from_code(header.operation.get());
            (operation, engine.execute(&header, outgoing, incoming))
        }
    };
    let data = match operation {
        Some(operation) if writes_incoming(operation) => outcome.transferred,
        _ => 0,
    };
    let text = Response::new(outcome.status, outcome.transferred, outcome.value).to_bytes();
    let written = if response.write(&text) {
        RESPONSE_BYTES + data
    } else {
        0
    };
    Served {
        operation,
        status: outcome.status,
        transferred: outcome.transferred,
        written,
    }
}
