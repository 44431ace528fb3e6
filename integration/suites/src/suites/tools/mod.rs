//! Programs that use the device node.

mod standard;
mod vdma;

pub(super) const INPUT: &str = "/tmp/tools-input";
pub(super) const OUTPUT: &str = "/tmp/tools-output";
