//! Everything that guests are started from, provided once for a run, and starting them.

pub(crate) mod boot;
mod environment;
pub(crate) mod guest;
pub(crate) mod provide;
