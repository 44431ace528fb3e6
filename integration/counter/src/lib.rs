//! Counts of the instructions that a guest executes.
//!
//! A QEMU plugin (`plugin/`, TCG only) counts how often each translated block is entered, in a file
//! that it shares with a reader while the guest runs: [`Recorder`] is the plugin's side, [`Counts`]
//! the reader's. Instructions are counted by block; a block that faults counts as a whole.

#![deny(missing_docs)]

mod counts;
mod layout;

pub use counts::{Counts, Snapshot};
pub use layout::{LayoutError, Record, Recorder};

/// The plugin's argument that names the file: `-plugin PATH,counts=FILE`.
pub const FILE_ARGUMENT: &str = "counts"; // QEMU reserves `file`.
