//! Guests and front ends that violate the protocol, one test for each class of bug that such
//! devices have had. The backend fails the request or stops the ring concerned, and serves all
//! others.

mod connections;
mod memory;
mod requests;
mod rings;

use vdma_protocol::{Operation, Status};

use crate::support::{Backend, Connect, FrontEnd, Request};

const MIB: u64 = 1 << 20;

fn connect(backend: &Backend) -> FrontEnd {
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    FrontEnd::connect_with(&backend.socket(), &options)
}

fn two_queues() -> (Backend, FrontEnd) {
    let backend = Backend::start(&["--memory-size", "1M", "--num-queues", "2"]);
    let front = connect(&backend);
    (backend, front)
}

fn assert_works(front: &mut FrontEnd, queue: usize) {
    let (response, _) = front.call(queue, &Request::new(Operation::Nop, 0, 0, 0));
    assert_eq!(response.status(), Status::OK);
}
