//! All suites; the name of a test is `SUITE::TEST`.

mod asynchronous;
mod buffers;
mod commands;
mod device_errors;
mod explain;
mod fio;
mod function_reset;
mod guest;
mod in_flight;
mod interrupted;
mod lazy;
mod loading;
mod mapping;
mod memory;
mod parameters;
mod polling;
mod queues;
mod read_write;
mod reclaim;
mod removal;
mod splice;
mod statistics;
mod timeouts;
mod tools;
mod tracing;
mod under_load;
mod uring_commands;

/// The suites in the order in which they are listed and run.
pub(crate) const ORDER: &[&str] = &[
    "guest",
    "read_write",
    "asynchronous",
    "in_flight",
    "fio",
    "loading",
    "mapping",
    "memory",
    "interrupted",
    "device_errors",
    "timeouts",
    "statistics",
    "removal",
    "splice",
    "tools",
    "lazy",
    "commands",
    "uring_commands",
    "buffers",
    "explain",
    "tracing",
    "polling",
    "parameters",
    "queues",
    "reclaim",
    "under_load",
    "function_reset",
];
