//! One running guest: QEMU, a backend for each device, the console, and the agent in the guest.
//!
//! Everything that can happen to it arrives as an event in one channel, and one loop
//! (`running.rs`) decides what it means. Nothing here depends on tests.

pub(crate) mod backend;
pub(crate) mod command_io;
mod commands;
mod console;
pub(crate) mod event;
mod hotplug;
mod kernel_log;
pub(crate) mod qemu;
mod qmp;
pub(crate) mod run_dir;
pub(crate) mod running;
mod verdict;
