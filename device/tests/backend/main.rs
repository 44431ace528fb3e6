//! Black-box tests of the backend: over its socket, with the vhost crate's front end and guest
//! memory in memfds. No virtual machine is needed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub)]

mod bar;
mod command_line;
mod configuration;
mod conformance;
mod device;
mod durability;
mod faults;
mod hostile;
mod observation;
mod operations;
mod sandbox;
mod support;
mod threads;
