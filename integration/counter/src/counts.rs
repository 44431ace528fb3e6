//! Reading the counts.

use std::{collections::HashMap, path::Path};

use crate::layout::{LayoutError, Shared};

/// The counts of a running guest.
#[derive(Debug)]
pub struct Counts(Shared);

impl Counts {
    /// Opens the file that the plugin counts in.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] if there is no such file or it has another format.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        Shared::open(path).map(Self)
    }

    /// Reads the current counts. They are not a consistent snapshot: the guest continues to run.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut blocks = HashMap::new();
        for record in self.0.used() {
            *blocks.entry(record.address()).or_default() += record.executed();
        }
        Snapshot {
            blocks,
            lost: self.0.lost(),
        }
    }
}

/// Executed instructions, by block.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    blocks: HashMap<u64, u64>,
    lost: u64,
}

impl Snapshot {
    /// Returns the difference to `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |(address, count): (&u64, &u64)| {
            let before = earlier.blocks.get(address).copied().unwrap_or(0);
            (*address, count.saturating_sub(before))
        };
        Self {
            blocks: self.blocks.iter().map(since).collect(),
            lost: self.lost.saturating_sub(earlier.lost),
        }
    }

    /// Iterates over the guest virtual addresses of blocks and the instructions executed in each.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.blocks
            .iter()
            .map(|(address, count)| (*address, *count))
    }

    /// Blocks that were translated and are not counted, because the file was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recorder;

    fn total(snapshot: &Snapshot) -> u64 {
        snapshot.blocks().map(|(_, count)| count).sum()
    }

    #[test]
    fn recorded_counts_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counts");
        assert!(matches!(Counts::open(&path), Err(LayoutError::System(_))));
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(Counts::open(&path), Err(LayoutError::Foreign)));

        let mut recorder = Recorder::create(&path).unwrap();
        let counts = Counts::open(&path).unwrap();
        for _ in 0..2 {
            recorder.record(0x1000, 5).unwrap().enter();
        }
        let before = counts.snapshot();
        assert_eq!(total(&before), 10);
        recorder.record(0x1000, 5).unwrap().enter();
        recorder.record(0x1000, 3).unwrap().enter();
        recorder.record(0x2000, 7).unwrap().enter();
        let after = counts.snapshot().since(&before);
        assert_eq!(total(&after), 15);
        assert!(after.blocks().any(|block| block == (0x1000, 8)));
        assert_eq!(after.lost(), 0);
    }

    #[test]
    fn a_full_file_counts_lost_blocks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counts");
        let mut recorder = Recorder::create(&path).unwrap();
        let mut address = 0;
        while recorder.record(address, 1).is_some() {
            address += 1;
        }
        assert!(recorder.record(address, 1).is_none());
        assert!(recorder.record(0, 1).is_some());
        assert_eq!(Counts::open(&path).unwrap().snapshot().lost(), 2);
    }
}
