// SPDX-License-Identifier: GPL-2.0

//! What is observed of requests: counters of a device and of each open file, the trace, the
//! tracepoints, debugfs, the eventfd.

pub(crate) mod counters;
pub(crate) mod debugfs;
pub(crate) mod log;
pub(crate) mod observer;
pub(crate) mod trace;
pub(crate) mod trace_file;

pub(crate) use self::observer::{DeviceObserver, Observer};
