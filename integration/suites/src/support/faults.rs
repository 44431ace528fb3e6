//! A device on which requests to certain ranges of its memory fail, or take long.
//!
//! All tests that need faults use [`ARGUMENTS`], so that they share one guest.

use std::ops::Range;

/// Arguments of the backend. The ranges are those below; a flush takes two seconds.
pub(crate) const ARGUMENTS: &[&str] = &[
    "--fault=delay=250ms,range=16M+1M",
    "--fault=delay=2ms,range=17M+1M",
    "--fault=delay=2s,range=18M+1M",
    "--fault=delay=2s,op=flush",
    "--fault=fail=io-error,range=32M+64K",
    "--fault=fail=unsupported,range=33M+64K",
    "--fault=fail=bad-request,range=34M+64K",
    "--fault=fail=200,range=35M+64K",
    "--fault=short,range=36M+64K",
    "--fault=short=0,range=37M+64K",
    "--fault=wrong-length=0,range=38M+64K",
    "--fault=wrong-length=4000000000,range=39M+64K",
    "--fault=swap,range=40M+64K",
    "--fault=fail=io-error,range=41M+64K,every=3",
    "--fault=twice,range=42M+64K",
    "--fault=drop,range=43M+64K",
    "--fault=wrong-id,range=44M+64K",
    "--fault=stop-queue,range=45M+64K",
];

const MIB: u64 = 1 << 20;

/// A request takes a quarter of a second.
pub(crate) const SLOW: Range<u64> = 16 * MIB..17 * MIB;
/// A request takes some milliseconds.
pub(crate) const SLUGGISH: Range<u64> = 17 * MIB..18 * MIB;
/// A request takes two seconds: enough for a signal to arrive while it is in flight.
pub(crate) const VERY_SLOW: Range<u64> = 18 * MIB..19 * MIB;
/// Requests fail with the status `IO_ERROR`.
pub(crate) const IO_ERROR: u64 = 32 * MIB;
/// Requests fail with the status `UNSUPPORTED`.
pub(crate) const UNSUPPORTED: u64 = 33 * MIB;
/// Requests fail with the status `BAD_REQUEST`.
pub(crate) const BAD_REQUEST: u64 = 34 * MIB;
/// Requests complete with a status that does not exist.
pub(crate) const UNKNOWN_STATUS: u64 = 35 * MIB;
/// Requests transfer half of their bytes.
pub(crate) const SHORT: u64 = 36 * MIB;
/// Requests transfer none of their bytes.
pub(crate) const NOTHING: u64 = 37 * MIB;
/// The used length is 0, as if the device had not even written the status.
pub(crate) const LENGTH_ZERO: u64 = 38 * MIB;
/// The used length is more than the buffers hold.
pub(crate) const LENGTH_HUGE: u64 = 39 * MIB;
/// Requests complete after the one behind them.
pub(crate) const SWAPPED: u64 = 40 * MIB;
/// Every third request fails.
pub(crate) const EVERY_THIRD: u64 = 41 * MIB;
/// Requests complete twice.
pub(crate) const TWICE: u64 = 42 * MIB;
/// Requests never complete.
pub(crate) const LOST: u64 = 43 * MIB;
/// Requests complete with the descriptor id of another.
pub(crate) const WRONG_ID: u64 = 44 * MIB;
/// A request stops the queue.
pub(crate) const STOPPING: u64 = 45 * MIB;
