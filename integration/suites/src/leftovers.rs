//! What a test must not leave behind: pinned pages, open files, requests in flight.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::support::procfs::pinned_pages;

/// Time for the kernel to release everything after the test's process has ended: worker threads
/// tear down io_uring instances and run delayed frees.
const RELEASE: Duration = Duration::from_secs(5);

/// The state that has to be the same before and after a test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holdings {
    /// Pages that are pinned for DMA.
    pinned_pages: i64,
    /// References that keep the driver's module from being unloaded: open files, requests.
    driver_users: i64,
}

impl Holdings {
    /// Takes the present state.
    pub(crate) fn now() -> Result<Self> {
        let driver_users = match fs::read_to_string("/sys/module/vdma/refcnt") {
            Ok(text) => text.trim().parse().context("the driver's use count")?,
            // A test may unload the driver.
            Err(_) => 0,
        };
        Ok(Self {
            pinned_pages: pinned_pages()?,
            driver_users,
        })
    }

    /// Fails unless the state returns to this one.
    pub(crate) fn wait_until_restored(&self) -> Result<()> {
        let deadline = Instant::now() + RELEASE;
        loop {
            let now = Self::now()?;
            if now == *self {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the test left something behind: {} pinned pages (before: {}), {} users of \
                     the driver (before: {})",
                    now.pinned_pages,
                    self.pinned_pages,
                    now.driver_users,
                    self.driver_users
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
