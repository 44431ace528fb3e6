//! Counts of the instructions that a guest executes.
//!
//! A plugin of QEMU (`plugin/`, TCG only) counts how often each translated block is entered, in a file
//! that it shares with whoever wants to know: [`Recorder`] is its end, [`Counts`] the reader's, while the
//! guest runs. Instructions are counted by block, so one that faults half-way counts as whole.

#![deny(missing_docs)]

mod counts;
mod layout;

pub use counts::{Counts, Snapshot};
pub use layout::{LayoutError, Record, Recorder};

/// The plugin's argument that names the file: `-plugin PATH,counts=FILE`.
pub const FILE_ARGUMENT: &str = "counts"; // QEMU keeps `file` for itself.
