//! Guests and front ends that break the rules, one test for each class of bug that such devices
//! have had. The daemon answers or stops the one ring concerned, and serves everybody else.

mod connections;
mod memory;
mod requests;
mod rings;

use vdma_protocol::{Operation, Status};

use crate::support::{Connect, Daemon, FrontEnd, Request};

const MIB: u64 = 1 << 20;

fn connect(daemon: &Daemon) -> FrontEnd {
    let options = Connect {
        num_queues: 2,
        ..Connect::default()
    };
    FrontEnd::connect_with(&daemon.socket(), &options)
}

fn two_queues() -> (Daemon, FrontEnd) {
    let daemon = Daemon::start(&["--memory-size", "1M", "--num-queues", "2"]);
    let front = connect(&daemon);
    (daemon, front)
}

fn assert_works(front: &mut FrontEnd, queue: usize) {
    let (response, _) = front.call(queue, &Request::new(Operation::Nop, 0, 0, 0));
    assert_eq!(response.status(), Status::OK);
}
