//! The vhost-user transport: one front end at a time, its rings, its threads.
//!
//! The `vhost-user-backend` crate handles the protocol on its own thread and calls `backend`. Rings
//! are not run by that crate's event loop but by `worker` threads, one for each or one for several
//! (`queue_runner`): a worker waits on exactly two descriptors of a ring, holds the ring's lock for
//! one bounded pass at a time, and a misbehaving descriptor of the front end affects only the ring
//! that it belongs to.

mod backend;
mod bar;
mod busy_poll;
mod connection;
mod device;
mod event;
mod listener;
mod queue_runner;
mod ring_state;
mod server;
mod session;
mod takeover;
mod vring;
mod worker;

pub use self::{
    device::{Device, DeviceSettings},
    listener::{ListenError, SocketListener},
    server::Server,
};
