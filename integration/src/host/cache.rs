//! The cache: everything that is expensive to build, keyed by what it was built from.
//!
//! An entry is built in a scratch directory under a file lock and renamed into place, so it is
//! either absent or complete, and concurrent runs build it once.

use std::{
    fmt::Write as _,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::host::progress;

/// Environment variable that names the cache directory.
const CACHE_VARIABLE: &str = "VDMA_CACHE";

/// The cache directory, held open (shared) for as long as this value lives.
pub(crate) struct Cache {
    root: PathBuf,
    _in_use: File,
}

impl Cache {
    /// Where the cache is: `$VDMA_CACHE`, `$XDG_CACHE_HOME/vdma` or `~/.cache/vdma`.
    pub(crate) fn location() -> Result<PathBuf> {
        let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = if let Some(path) = from(CACHE_VARIABLE) {
            PathBuf::from(path)
        } else if let Some(path) = from("XDG_CACHE_HOME") {
            PathBuf::from(path).join("vdma")
        } else if let Some(home) = std::env::home_dir() {
            home.join(".cache/vdma")
        } else {
            bail!("no cache directory: neither {CACHE_VARIABLE} nor HOME is set; set one of them");
        };
        std::path::absolute(&path).with_context(|| format!("cache path {}", path.display()))
    }

    /// Opens the cache; [`Cache::remove`] refuses while it is open.
    pub(crate) fn open() -> Result<Self> {
        let root = Self::location()?;
        fs::create_dir_all(root.join("locks"))
            .with_context(|| format!("cannot create the cache {}", root.display()))?;
        let in_use = lock_file(&root.join("locks/in-use"))?;
        match in_use.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "the cache {} is being removed by `cargo vm clean`; try again",
                    root.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", root.display()));
            }
        }
        Ok(Self {
            root,
            _in_use: in_use,
        })
    }

    /// Deletes the whole cache; returns false if there was none.
    pub(crate) fn remove() -> Result<bool> {
        let root = Self::location()?;
        if !root.exists() {
            return Ok(false);
        }
        let lock_path = root.join("locks/in-use");
        if !lock_path.exists() {
            bail!(
                "{} does not look like a vdma cache (no locks/in-use in it); remove it by hand",
                root.display()
            );
        }
        let in_use = lock_file(&lock_path)?;
        if in_use.try_lock().is_err() {
            bail!(
                "the cache {} is in use by another `cargo vm`; end that first",
                root.display()
            );
        }
        fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        Ok(true)
    }

    /// A path below the cache directory.
    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// A directory below the cache, created if it is missing.
    pub(crate) fn directory(&self, relative: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.root.join(relative);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Returns the directory `kind/key`; if it does not exist, `build` fills a scratch directory
    /// that becomes it.
    pub(crate) fn entry(
        &self,
        kind: &str,
        key: &str,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let entry = self.root.join(kind).join(key);
        if entry.exists() {
            return Ok(entry);
        }
        let _lock = self.lock(&format!("{kind}-{key}"))?;
        if entry.exists() {
            return Ok(entry);
        }
        // This run holds the lock, so a directory at this path was left by a run that was killed.
        let scratch = self.directory("scratch")?.join(format!("{kind}-{key}"));
        if scratch.exists() {
            remove_tree(&scratch)?;
        }
        fs::create_dir(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
        let built = build(&scratch);
        if let Err(error) = built {
            // The build's error is the one to report; the next run removes what remains here.
            let _ = remove_tree(&scratch);
            return Err(error);
        }
        self.directory(kind)?;
        fs::rename(&scratch, &entry)
            .with_context(|| format!("cannot move {} into place", entry.display()))?;
        Ok(entry)
    }

    /// Takes the lock `name`, waiting for another run that holds it.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join("locks").join(name);
        let file = lock_file(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let _step = progress::step(format!("waiting for another cargo vm ({name})"));
                file.lock()
                    .with_context(|| format!("cannot lock {}", path.display()))?;
                Ok(file)
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }
}

fn lock_file(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open the lock file {}", path.display()))
}

/// Removes a directory tree.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Writes `path` through a neighbour and a rename, so that readers see the old or the new content.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("cannot create a file in {}", directory.display()))?;
    std::io::Write::write_all(&mut file, content)
        .with_context(|| format!("cannot write {}", file.path().display()))?;
    file.persist(path)
        .with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

/// A short content key over `parts`, each framed by its length.
pub(crate) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let mut text = String::new();
    for byte in &hash.finalize()[..8] {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(root: &Path) -> Cache {
        fs::create_dir_all(root.join("locks")).unwrap();
        Cache {
            root: root.to_owned(),
            _in_use: lock_file(&root.join("locks/in-use")).unwrap(),
        }
    }

    #[test]
    fn a_failed_build_leaves_no_entry_and_the_next_one_starts_clean() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let failed = cache.entry("kind", "key", |scratch| {
            fs::write(scratch.join("half"), "made").unwrap();
            bail!("no")
        });
        assert!(failed.is_err());
        assert!(!cache.path("kind/key").exists());
        let entry = cache
            .entry("kind", "key", |scratch| {
                assert!(!scratch.join("half").exists());
                fs::write(scratch.join("whole"), "").map_err(Into::into)
            })
            .unwrap();
        assert!(entry.join("whole").exists());
    }

    #[test]
    fn an_entry_is_built_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let built = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache
                        .entry("kind", "key", |_| {
                            built.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(built.into_inner(), 1);
    }

    #[test]
    fn keys_tell_where_parts_end() {
        assert_ne!(key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
    }
}
