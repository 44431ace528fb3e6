// SPDX-License-Identifier: GPL-2.0

//! Counts of each device below `/sys/kernel/debug/vdma`.

use kernel::{
    debugfs::{Dir, Scope},
    fmt,
    prelude::*,
    str::CString,
    sync::Arc,
};

use crate::{
    io::queue::Queues,
    linux::rcu::{Publication, Published},
    observe::DeviceObserver,
    protocol::Statistics,
};

/// The directory of the module, while there is one.
static ROOT: Published<Dir> = Published::new();

/// Keeps the directory of the module in existence. Dropped when no device is bound any more.
pub(crate) struct Root(#[allow(dead_code, reason = "dropped only")] Publication<Dir>);

impl Root {
    pub(crate) fn new() -> Result<Self> {
        let directory = Arc::new(Dir::new(c"vdma"), GFP_KERNEL)?;
        ROOT.publish(directory).map(Self)
    }
}

/// What the files of a device are made from.
struct Shown {
    observer: Arc<DeviceObserver>,
    queues: Arc<Queues>,
}

/// The directory of a device.
pub(crate) struct Directory(#[allow(dead_code)] Pin<KBox<Scope<Shown>>>);

impl Directory {
    /// May sleep.
    pub(crate) fn new(observer: Arc<DeviceObserver>, queues: Arc<Queues>) -> Result<Self> {
        let root = ROOT.get().ok_or(ENODEV)?;
        let name = CString::try_from_fmt(fmt!("vdma{}", observer.number))?;
        let shown = Shown { observer, queues };
        let scope = root.scope(Ok::<_, Error>(shown), &name, |shown, directory| {
            directory.read_callback_file(c"statistics", shown, &show_statistics);
            directory.read_callback_file(c"queues", shown, &show_queues);
        });
        Ok(Self(KBox::pin_init(scope, GFP_KERNEL)?))
    }
}

fn show_statistics(shown: &Shown, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let statistics = shown.observer.counters.snapshot();
    for (name, value) in Statistics::NAMES.into_iter().zip(statistics.values()) {
        writeln!(out, "{name} {value}")?;
    }
    Ok(())
}

fn show_queues(shown: &Shown, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (number, queue) in shown.queues.iter().enumerate() {
        writeln!(out, "{number} in_flight {}", queue.in_flight())?;
    }
    Ok(())
}
