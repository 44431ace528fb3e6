//! The privileges that the process drops before any front end can connect.
//!
//! In this order: capabilities and the means of gaining new privileges, then the file system
//! (landlock), then system calls (seccomp), first for the whole process and once more, narrower,
//! for each kind of thread. A guest that took over a queue's thread could access what that thread
//! has mapped, wait, and notify; it could not open, connect, execute or trace anything.

mod confine;
mod error;
mod filesystem;
mod settings;
mod syscalls;

pub use self::{
    confine::{confine_process, confine_thread},
    error::{SandboxError, SeccompModeError},
    filesystem::restrict_file_system,
    settings::{Role, SandboxSettings, SeccompMode},
};
