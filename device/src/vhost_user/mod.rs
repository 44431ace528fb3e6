//! The vhost-user side: one front end at a time, its rings, its threads.
//!
//! The `vhost-user-backend` crate speaks the protocol on a thread of its own and calls
//! `backend`. Rings are not run by that crate's event loop but by `worker` threads, one for each or
//! one for several (`queue_runner`): a worker waits on exactly two descriptors of a ring, holds the
//! ring's lock for one bounded pass at a time, and a descriptor of the front end that misbehaves can
//! only hurt the ring it belongs to.

mod backend;
mod bar;
mod listener;
mod polling;
mod queue_runner;
mod server;
mod session;
mod vring;
mod worker;

pub use self::{
    listener::{ListenError, SocketListener},
    server::{Device, DeviceSettings, Server},
};
