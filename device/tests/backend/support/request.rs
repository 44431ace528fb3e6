//! Requests as a driver sends them.

use vdma_protocol::{Operation, RequestHeader, Response, Status};

use super::{frontend::FrontEnd, ring::Buffer};

/// A request as a driver lays it out: header, outgoing data, response, incoming data.
pub struct Request {
    pub header: RequestHeader,
    pub outgoing: Vec<(u64, u32)>,
    pub incoming: Vec<(u64, u32)>,
}

impl Request {
    pub fn new(operation: Operation, offset: u64, length: u64, argument: u64) -> Self {
        Self {
            header: RequestHeader::new(operation, offset, length, argument),
            outgoing: Vec::new(),
            incoming: Vec::new(),
        }
    }

    pub fn outgoing(mut self, address: u64, length: u32) -> Self {
        self.outgoing.push((address, length));
        self
    }

    pub fn incoming(mut self, address: u64, length: u32) -> Self {
        self.incoming.push((address, length));
        self
    }
}

/// Headers and responses of the requests of [`FrontEnd::submit`]: one slot for each head.
pub const HEADERS: u64 = 0x40_0000;
pub const RESPONSES: u64 = 0x50_0000;
/// Data of the tests.
pub const DATA: u64 = 0x80_0000;

/// Offset of a queue's slot among the headers, and among the responses.
fn place(queue: usize, slot: u16) -> u64 {
    0x4000 * queue as u64 + 64 * u64::from(slot)
}

impl FrontEnd {
    /// Makes `request` available on `queue`, without a kick; returns its slot.
    pub fn submit(&mut self, queue: usize, request: &Request, slot: u16) {
        let header_at = HEADERS + place(queue, slot);
        let response_at = RESPONSES + place(queue, slot);
        self.guest.write(header_at, &request.header.to_bytes());
        self.guest.write(
            response_at,
            &Response::new(Status::UNWRITTEN, 0, 0).to_bytes(),
        );
        let mut chain = vec![Buffer::readable(header_at, 32)];
        chain.extend(
            request
                .outgoing
                .iter()
                .map(|&(a, l)| Buffer::readable(a, l)),
        );
        chain.push(Buffer::writable(response_at, 16));
        chain.extend(
            request
                .incoming
                .iter()
                .map(|&(a, l)| Buffer::writable(a, l)),
        );
        let guest = self.guest.clone();
        self.rings[queue].submit(&guest, &chain, slot);
    }

    /// The response in a slot of queue 0.
    pub fn response(&self, slot: u16) -> Response {
        self.response_on(0, slot)
    }

    fn response_on(&self, queue: usize, slot: u16) -> Response {
        let mut bytes = [0; 16];
        self.guest.read(RESPONSES + place(queue, slot), &mut bytes);
        Response::from_bytes(&bytes)
    }

    /// Submits one request, kicks, waits, and returns the response and the used length.
    pub fn call(&mut self, queue: usize, request: &Request) -> (Response, u32) {
        self.submit(queue, request, 0);
        self.kick(queue);
        let used = self.wait(queue);
        (self.response_on(queue, 0), used.written)
    }
}
