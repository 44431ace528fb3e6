//! What the steps of the demo share.

use std::path::PathBuf;

use crate::holdings::Holdings;

/// What the steps work with.
pub(crate) struct Demo {
    pub(crate) device: vdma::Device,
    /// A real file to transfer.
    pub(crate) file: PathBuf,
    /// What the driver held when the demo began.
    pub(crate) before: Holdings,
}
