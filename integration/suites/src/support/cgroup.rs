//! A memory cgroup.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const ROOT: &str = "/tmp/cgroup";

/// A cgroup that accounts memory; dropping this removes it, when no process is in it any more.
pub(crate) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// An empty group below the root.
    pub(crate) fn new() -> Result<Self> {
        fs::create_dir_all(ROOT).context(ROOT)?;
        mount("cgroup2", ROOT, "cgroup2", MountFlags::empty(), None).context("mount cgroup2")?;
        let group = Self(format!("{ROOT}/vdma-suites").into());
        fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory")
            .context("the memory controller")?;
        fs::create_dir_all(&group.0).context("a cgroup")?;
        Ok(group)
    }

    /// Puts this process, which has a single thread, into the group.
    pub(crate) fn enter(&self) -> Result<()> {
        fs::write(self.0.join("cgroup.procs"), "0").context("cannot enter a cgroup")
    }

    /// Bytes of small objects of the kernel that are charged to the group. The kernel adds them up
    /// every two seconds, or when there are many changes.
    pub(crate) fn slab(&self) -> Result<usize> {
        let text = fs::read_to_string(self.0.join("memory.stat")).context("memory.stat")?;
        let line = text.lines().find_map(|line| line.strip_prefix("slab "));
        let bytes = line.context("memory.stat has no slab")?;
        bytes.parse().context("memory.stat")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let removed = fs::remove_dir(&self.0);
        let unmounted = unmount(ROOT, UnmountFlags::empty());
        if let Err(error) = removed {
            eprintln!("a cgroup: {error}");
        }
        if let Err(error) = unmounted {
            eprintln!("{ROOT}: {error}");
        }
    }
}
