//! SIGINT, SIGTERM and SIGHUP: all children are terminated, then the run ends with 128 + signal.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicI32, Ordering},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::host::process_groups;

static RECEIVED: AtomicI32 = AtomicI32::new(0);
static LISTENER: Mutex<Option<Box<dyn Fn() + Send>>> = Mutex::new(None);

/// The error of a run that was ended by a signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by signal {0}")]
pub(crate) struct Interrupted(pub(crate) i32);

/// Starts the thread that waits for signals.
pub(crate) fn install() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot install signal handlers")?;
    std::thread::spawn(move || {
        for signal in &mut signals {
            if RECEIVED.swap(signal, Ordering::SeqCst) == 0 {
                process_groups::signal_all(Signal::TERM);
            } else {
                process_groups::signal_all(Signal::KILL);
            }
            if let Some(listener) = &*LISTENER.lock().unwrap_or_else(PoisonError::into_inner) {
                listener();
            }
        }
    });
    Ok(())
}

/// Returns an error once a signal has been received.
pub(crate) fn check() -> Result<(), Interrupted> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(Interrupted(signal)),
    }
}

/// Replaces the listener that the signal thread calls for each signal.
pub(crate) fn listen(listener: impl Fn() + Send + 'static) {
    *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(listener));
}
