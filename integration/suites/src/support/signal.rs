//! Signals whose only effect is to interrupt.

use std::{io, mem::MaybeUninit};

use anyhow::{Result, ensure};
use rustix::process::Signal;

extern "C" fn ignore(_signal: libc::c_int) {}

/// Makes `signal` interrupt blocking calls of this process, which are not restarted.
pub(crate) fn interrupt_on(signal: Signal) -> Result<()> {
    let handler: extern "C" fn(libc::c_int) = ignore;
    // SAFETY: All zeroes is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as usize;
    // SAFETY: The handler does nothing, which is allowed at any moment.
    let result =
        unsafe { libc::sigaction(signal.as_raw(), &raw const action, std::ptr::null_mut()) };
    ensure!(result == 0, "sigaction: {}", io::Error::last_os_error());
    Ok(())
}

/// Periodic `SIGALRM`, until dropped.
pub(crate) struct Alarms;

impl Alarms {
    /// Starts the timer.
    pub(crate) fn every_microseconds(microseconds: i64) -> Result<Self> {
        set_timer(microseconds)?;
        Ok(Self)
    }
}

impl Drop for Alarms {
    fn drop(&mut self) {
        // Stopping the timer cannot fail.
        let _ = set_timer(0);
    }
}

fn set_timer(microseconds: i64) -> Result<()> {
    let time = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: The kernel reads the structure during the call.
    let result =
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    ensure!(result == 0, "setitimer: {}", io::Error::last_os_error());
    Ok(())
}
