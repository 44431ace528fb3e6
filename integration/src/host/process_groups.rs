//! Process groups of running children, so that a signal or a failure can end all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal};

static RUNNING: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Adds the group whose leader `start` starts; a signal to all groups comes before or after, never
/// in between.
pub(super) fn add<E>(start: impl FnOnce() -> Result<Pid, E>) -> Result<Pid, E> {
    let mut running = running();
    let group = start()?;
    running.push(group);
    Ok(group)
}

/// Removes a group whose leader has been waited for.
pub(super) fn remove(group: Pid) {
    running().retain(|other| *other != group);
}

/// Sends `signal` to every group.
pub(crate) fn signal_all(signal: Signal) {
    for group in running().iter() {
        // A group that has just ended needs no signal.
        let _ = rustix::process::kill_process_group(*group, signal);
    }
}

fn running() -> MutexGuard<'static, Vec<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
