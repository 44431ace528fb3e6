//! All suites. A test is reached as `SUITE::TEST`.

mod asynchronous;
mod buffers;
mod commands;
mod crowd;
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
mod uring_commands;

use crate::test::Test;

/// Every suite with its tests.
pub(crate) const SUITES: &[(&str, &[Test])] = &[
    ("guest", guest::TESTS),
    ("read_write", read_write::TESTS),
    ("asynchronous", asynchronous::TESTS),
    ("in_flight", in_flight::TESTS),
    ("fio", fio::TESTS),
    ("loading", loading::TESTS),
    ("mapping", mapping::TESTS),
    ("memory", memory::TESTS),
    ("interrupted", interrupted::TESTS),
    ("device_errors", device_errors::TESTS),
    ("timeouts", timeouts::TESTS),
    ("statistics", statistics::TESTS),
    ("removal", removal::TESTS),
    ("splice", splice::TESTS),
    ("tools", tools::TESTS),
    ("lazy", lazy::TESTS),
    ("commands", commands::TESTS),
    ("uring_commands", uring_commands::TESTS),
    ("buffers", buffers::TESTS),
    ("explain", explain::TESTS),
    ("tracing", tracing::TESTS),
    ("polling", polling::TESTS),
    ("parameters", parameters::TESTS),
    ("queues", queues::TESTS),
    ("reclaim", reclaim::TESTS),
    ("crowd", crowd::TESTS),
    ("function_reset", function_reset::TESTS),
];
