//! Faults on purpose: what a driver's author needs to reach each error path.
//!
//! `--fault KIND[=VALUE][,SELECTOR=VALUE]...` A fault happens to each request that all of its
//! selectors choose. Every queue decides by itself, from its own counts and random numbers, so that
//! the same requests meet the same faults whatever other queues do.

mod injector;
mod spec;

pub(crate) use self::injector::flipped_bits;
pub use self::{
    injector::{Injector, Plan},
    spec::{Action, FaultError, FaultSpec, HELP},
};

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The request, and all behind it, wait.
    Delay,
    /// The request is answered with a status and not carried out.
    Fail,
    /// Only the first bytes are worked on.
    Short,
    /// Bits of the result are inverted.
    Flip,
    /// The request is carried out and never completed.
    Drop,
    /// The request is completed twice.
    Twice,
    /// The used entry names another chain.
    WrongId,
    /// The used entry has another length.
    WrongLength,
    /// The request and the next one are completed in the wrong order.
    Swap,
    /// The queue stops as if its ring were corrupt.
    StopQueue,
    /// The daemon is gone at once.
    Vanish,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Delay,
        Self::Fail,
        Self::Short,
        Self::Flip,
        Self::Drop,
        Self::Twice,
        Self::WrongId,
        Self::WrongLength,
        Self::Swap,
        Self::StopQueue,
        Self::Vanish,
    ];

    /// The name in specifications and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Fail => "fail",
            Self::Short => "short",
            Self::Flip => "flip",
            Self::Drop => "drop",
            Self::Twice => "twice",
            Self::WrongId => "wrong-id",
            Self::WrongLength => "wrong-length",
            Self::Swap => "swap",
            Self::StopQueue => "stop-queue",
            Self::Vanish => "vanish",
        }
    }
}
