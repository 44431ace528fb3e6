//! What a test must not leave behind: pinned pages, open files, requests under way.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long the kernel may take to let go after the test's process has ended: io_uring instances
/// and delayed frees are taken apart by worker threads.
const LET_GO: Duration = Duration::from_secs(5);

/// Makes the counts of `/proc/vmstat` exact.
const REFRESH: &str = "/proc/sys/vm/stat_refresh";

/// The state that has to be the same before and after a test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Holdings {
    /// Pages that are pinned for DMA.
    pinned_pages: i64,
    /// What keeps the driver's module from being unloaded: open files, requests.
    driver_users: i64,
}

impl Holdings {
    /// The state now.
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

    /// Fails unless the state becomes what it was.
    pub(crate) fn wait_until_restored(&self) -> Result<()> {
        let deadline = Instant::now() + LET_GO;
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

/// Pages that are pinned for DMA, in the whole system.
pub(crate) fn pinned_pages() -> Result<i64> {
    // Each CPU keeps what it counted for up to a second, unless it is asked.
    if let Err(error) = fs::write(REFRESH, "1")
        && error.kind() != std::io::ErrorKind::NotFound
    {
        // A kernel for one CPU has no such file, and nothing to ask for.
        return Err(error).context(REFRESH);
    }
    let vmstat = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    let count = |name: &str| counter(&vmstat, name);
    Ok(count("nr_foll_pin_acquired")? - count("nr_foll_pin_released")?)
}

fn counter(vmstat: &str, name: &str) -> Result<i64> {
    vmstat
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .with_context(|| format!("the kernel counts no {name}"))?
        .parse()
        .with_context(|| format!("{name} in /proc/vmstat"))
}

#[cfg(test)]
mod tests {
    use super::counter;

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "nr_foll_pin_acquired_x 1\nnr_foll_pin_acquired 12\n";
        assert_eq!(counter(text, "nr_foll_pin_acquired").unwrap(), 12);
        assert!(counter(text, "nr_foll_pin").is_err());
    }
}
