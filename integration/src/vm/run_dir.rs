//! The directories of one run: a temporary one for sockets and images, and one for logs.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use crate::host::cache::Cache;

/// Number of runs whose logs are kept.
const KEPT_LOGS: usize = 30;

/// Prefix of the names of runs' directories.
const PREFIX: &str = "vdma-run-";

/// One run's directories.
pub(crate) struct RunDir {
    directory: tempfile::TempDir,
    logs: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Creates the directories; removes those that killed runs have left.
    pub(crate) fn create(cache: &Cache) -> Result<Self> {
        let base = std::env::temp_dir();
        remove_stale(&base);
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(&base)
            .with_context(|| format!("cannot create a directory in {}", base.display()))?;
        let lock = File::create(directory.path().join("lock")).context("cannot create a lock")?;
        lock.lock().context("cannot take a lock")?;
        let all = cache.directory("runs")?;
        remove_oldest(&all);
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let logs = all.join(format!("{}-{}", since.as_millis(), std::process::id()));
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        Ok(Self {
            directory,
            logs,
            _lock: lock,
        })
    }

    /// The temporary directory, removed after the run.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The directory of the run's logs, which is kept.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }
}

/// Removes directories whose owner no longer holds their lock.
fn remove_stale(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours
            && let Ok(lock) = File::open(path.join("lock"))
            && lock.try_lock().is_ok()
        {
            // It may belong to another user, or another run may be removing it.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn remove_oldest(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let surplus = paths.len().saturating_sub(KEPT_LOGS - 1);
    for path in &paths[..surplus] {
        // Another run may be removing it.
        let _ = fs::remove_dir_all(path);
    }
}
