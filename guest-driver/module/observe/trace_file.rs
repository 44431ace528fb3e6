// SPDX-License-Identifier: GPL-2.0

//! The file through which user space maps the trace of a device.

use kernel::{prelude::*, sync::Arc};

use crate::{
    linux::{
        anon_file::{AnonymousFile, Table, VmallocFile},
        vmalloc::VmallocArea,
    },
    observe::{observer::DeviceObserver, trace},
};

/// An open file of the trace: while there is one, requests are recorded.
pub(crate) struct TraceFile(Arc<DeviceObserver>);

impl TraceFile {
    /// Bytes that its mapping has.
    pub(crate) const LENGTH: usize = trace::LENGTH;

    /// May sleep.
    pub(crate) fn new(device: Arc<DeviceObserver>) -> Result<Self> {
        device.trace()?;
        device.count_reader(true);
        Ok(Self(device))
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        self.0.count_reader(false);
    }
}

static TABLE: Table<TraceFile> = Table::new();

impl AnonymousFile for TraceFile {
    const NAME: &'static CStr = c"[vdma-trace]";

    fn table() -> &'static Table<Self> {
        &TABLE
    }
}

impl VmallocFile for TraceFile {
    fn area(&self) -> Result<&VmallocArea> {
        Ok(self.0.trace()?.area())
    }
}
