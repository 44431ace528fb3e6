//! The kinds of faults.

/// What a fault does to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The request, and all behind it, are held for a time.
    Delay,
    /// The request fails with a status and is not executed.
    Fail,
    /// Only the first bytes are processed.
    Short,
    /// Bits of the data or of the result are inverted.
    Flip,
    /// The request is executed and never completed.
    Drop,
    /// The request is completed twice.
    Twice,
    /// The used entry has a wrong id.
    WrongId,
    /// The used entry has a wrong length.
    WrongLength,
    /// The request and the next one are completed in the wrong order.
    Swap,
    /// The queue stops as if its ring were corrupt.
    StopQueue,
    /// The backend process is killed.
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

    /// The name of every kind, in the same order.
    pub const NAMES: [&'static str; Self::ALL.len()] = {
        let mut names = [""; Self::ALL.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = Self::ALL[index].name();
            index += 1;
        }
        names
    };

    /// The name in `--fault` and in the metrics.
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
