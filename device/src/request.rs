//! From a descriptor chain to an operation and back: header, data parts, response.

use std::fmt;

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use crate::{
    engine::{Engine, Outcome, Segments, writes_incoming},
    fault::{Plan, flipped_bits},
    queue::Chain,
};

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

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operation = self.operation.map_or("no operation", Operation::name);
        let Self {
            status,
            transferred,
            written,
            ..
        } = self;
        write!(
            f,
            "{operation}: {status:?}, {transferred} bytes done, {written} written"
        )
    }
}

/// A chain taken apart. Its header has been read, once.
#[derive(Clone, Copy, Debug)]
pub struct Request<'s, 'm> {
    header: Result<RequestHeader, Status>,
    outgoing: Segments<'s, 'm>,
    incoming: Segments<'s, 'm>,
    /// `None` when there is no room for one.
    response: Option<Segments<'s, 'm>>,
}

impl<'s, 'm> Request<'s, 'm> {
    /// Takes `chain` apart.
    #[must_use]
    pub fn new(chain: &'s Chain<'m>) -> Self {
        let mut outgoing = Segments::new(chain.readable());
        let mut incoming = Segments::new(chain.writable());
        let response = Some(incoming).filter(|_| incoming.advance(Response::SIZE));
        let header = match chain.defect() {
            Some(status) => Err(status),
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
        }
    }

    /// The header, unless the request has none.
    #[must_use]
    pub fn header(&self) -> Option<&RequestHeader> {
        self.header.as_ref().ok()
    }

    /// Carries the request out and writes its response. Without room for a response nothing is done
    /// and nothing written.
    pub fn serve(&self, engine: &mut Engine) -> Served {
        self.finish(|header| engine.execute(header, &self.outgoing, &self.incoming))
    }

    /// The same with what `plan` does to the work itself and to the response's contents.
    pub fn serve_with(&self, engine: &mut Engine, plan: &Plan) -> Served {
        self.finish(|header| {
            if let Some(status) = plan.fail {
                return Outcome::refused(status);
            }
            let mut cut = *self;
            let mut header = *header;
            if let Some(bytes) = plan.short {
                let length = header.length.get();
                let bytes = bytes.unwrap_or(length / 2).min(length);
                header.length = bytes.into();
                cut.outgoing.truncate(bytes);
                cut.incoming.truncate(bytes);
            }
            let outcome = engine.execute(&header, &cut.outgoing, &cut.incoming);
            match plan.flip {
                Some((bits, seed)) if outcome.status == Status::OK => {
                    cut.flip(engine, &header, outcome, bits, seed)
                }
                _ => outcome,
            }
        })
    }

    fn finish(&self, execute: impl FnOnce(&RequestHeader) -> Outcome) -> Served {
        let operation = self
            .header()
            .and_then(|header| Operation::from_code(header.operation.get()));
        let Some(response) = self.response else {
            return Served {
                operation,
                status: self.header.err().unwrap_or(Status::BAD_REQUEST),
                transferred: 0,
                written: 0,
            };
        };
        let outcome = match &self.header {
            Ok(header) => execute(header),
            Err(status) => Outcome::refused(*status),
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

    /// Inverts bits of what the operation produced: incoming data, device memory, or the value.
    fn flip(
        &self,
        engine: &Engine,
        header: &RequestHeader,
        mut outcome: Outcome,
        bits: u32,
        seed: u64,
    ) -> Outcome {
        let length = header.length.get();
        let target = Operation::from_code(header.operation.get());
        match target {
            Some(operation) if writes_incoming(operation) => {
                for bit in flipped_bits(bits, seed, 8 * length) {
                    self.incoming.flip_bit(bit);
                }
            }
            Some(
                Operation::Write
                | Operation::WriteCrc32c
                | Operation::Move
                | Operation::Fill
                | Operation::Discard,
            ) => {
                if let Some(range) = engine.memory().slice(header.offset.get(), length) {
                    let list = [range];
                    for bit in flipped_bits(bits, seed, 8 * length) {
                        Segments::new(&list).flip_bit(bit);
                    }
                }
            }
            Some(Operation::Compare | Operation::Crc32c | Operation::Crc32cGuest) => {
                for bit in flipped_bits(bits, seed, 32) {
                    outcome.value ^= 1 << bit;
                }
            }
            _ => {}
        }
        outcome
    }
}
