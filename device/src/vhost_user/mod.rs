//! The vhost-user side: one front end at a time, its rings, its threads.
//!
//! The `vhost-user-backend` crate speaks the protocol on a thread of its own and calls
//! `backend`. Rings are not run by that crate's event loop but by one `worker` thread each: it
//! waits on exactly two descriptors, holds the ring's lock for one bounded pass at a time, and a
//! descriptor of the front end that misbehaves can only hurt the ring it belongs to.

mod backend;
mod bar;
mod listener;
mod polling;
mod server;
mod session;
mod vring;
mod worker;

pub use self::listener::{ListenError, SocketListener};
pub use self::server::{Device, DeviceSettings, Server};
