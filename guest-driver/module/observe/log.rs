// SPDX-License-Identifier: GPL-2.0

//! Messages about the device, at most a few per second whatever it does.

use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
};

use crate::{
    linux::clock,
    protocol::{Operation, RequestHeader},
};

/// Messages that one second may bring.
const PER_SECOND: u64 = 5;

static SECOND: Atomic<u64> = Atomic::new(0);
static COUNT: Atomic<u64> = Atomic::new(0);

/// Whether another message fits into this second. Races only blur the limit.
fn allowed() -> bool {
    let second = clock::monotonic_seconds();
    if SECOND.load(Relaxed) != second {
        SECOND.store(second, Relaxed);
        COUNT.store(0, Relaxed);
    }
    COUNT.fetch_add(1, Relaxed) < PER_SECOND
}

/// Warns of a response with an error, or with values that cannot be true. Any context.
pub(crate) fn bad_response(header: &RequestHeader, what: &str) {
    if !allowed() {
        return;
    }
    let operation = Operation::from_code(header.operation.get()).map_or("unknown", Operation::name);
    pr_warn!(
        "{} of {} bytes at {:#x}: {}\n",
        operation,
        header.length.get(),
        header.offset.get(),
        what
    );
}
