//! What the front end's thread and a worker tell each other about a ring, besides the ring itself.

use std::{
    fs::File,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use crate::lock::lock;

/// The descriptors by which a ring's two sides notify each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Notifiers {
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Option<Arc<File>>,
    pub(super) error: Option<Arc<File>>,
}

/// The state of a ring that `virtio-queue` does not keep.
#[derive(Clone, Debug, Default)]
pub(super) struct RingState {
    pub(super) notifiers: Notifiers,
    /// Number of starts and placements: what a worker remembers about an earlier one is stale.
    pub(super) generation: u64,
    /// The last requested size, if no ring can have it.
    pub(super) invalid_size: Option<u16>,
    /// The ring failed, and has not been reconfigured since.
    pub(super) broken: bool,
}

/// A [`RingState`] that the front end's thread changes and a worker follows through a
/// [`StateCache`].
#[derive(Debug, Default)]
pub(super) struct SharedRingState {
    state: Mutex<RingState>,
    /// Number of changes.
    version: AtomicU64,
}

impl SharedRingState {
    /// Changes the state.
    pub(super) fn update<T>(&self, change: impl FnOnce(&mut RingState) -> T) -> T {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        self.version.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// Reads a part of the state.
    pub(super) fn read<T>(&self, part: impl FnOnce(&RingState) -> T) -> T {
        part(&lock(&self.state))
    }
}

/// A worker's copy of the state, which costs one load as long as nothing changes.
#[derive(Debug, Default)]
pub(super) struct StateCache {
    state: RingState,
    version: u64,
}

impl StateCache {
    /// The current state.
    pub(super) fn refresh(&mut self, shared: &SharedRingState) -> &RingState {
        // Read before the state: a change in between makes the next refresh copy it once more.
        let version = shared.version.load(Ordering::SeqCst);
        if version != self.version {
            self.state = shared.read(RingState::clone);
            self.version = version;
        }
        &self.state
    }

    /// The state at the last refresh.
    pub(super) fn last(&self) -> &RingState {
        &self.state
    }
}

/// What keeps a worker from running the ring: the number of other threads that wait for its lock,
/// and a flag that the worker is to stop.
#[derive(Debug, Default)]
pub(super) struct Contention(AtomicU32);

impl Contention {
    const STOPPING: u32 = 1 << 31;

    /// Runs `acquire`, during which a worker does not take the ring's lock again.
    pub(super) fn waiting<T>(&self, acquire: impl FnOnce() -> T) -> T {
        self.0.fetch_add(1, Ordering::SeqCst);
        let acquired = acquire();
        self.0.fetch_sub(1, Ordering::SeqCst);
        acquired
    }

    /// Yields the CPU as long as another thread waits for the lock.
    pub(super) fn give_way(&self) {
        while self.0.load(Ordering::SeqCst) & !Self::STOPPING > 0 {
            std::thread::yield_now();
        }
    }

    pub(super) fn stop(&self) {
        self.0.fetch_or(Self::STOPPING, Ordering::SeqCst);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.load(Ordering::SeqCst) & Self::STOPPING != 0
    }

    /// Whether a pass should end soon, for a waiting thread or for good.
    pub(super) fn is_contended(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_follows_each_change() {
        let shared = SharedRingState::default();
        let mut cache = StateCache::default();
        assert_eq!(cache.refresh(&shared).generation, 0);
        for generation in 1..4 {
            shared.update(|state| state.generation += 1);
            assert_eq!(cache.last().generation, generation - 1);
            assert_eq!(cache.refresh(&shared).generation, generation);
        }
        shared.update(|state| state.broken = true);
        assert!(cache.refresh(&shared).broken && cache.last().broken);
    }

    #[test]
    fn contention_is_a_waiting_thread_or_a_stop() {
        let contention = Contention::default();
        contention.give_way();
        assert!(!contention.is_contended());
        contention.waiting(|| assert!(contention.is_contended() && !contention.is_stopping()));
        assert!(!contention.is_contended());
        contention.stop();
        assert!(contention.is_contended() && contention.is_stopping());
        // Nothing waits: a stopping worker is not kept from its last pass.
        contention.give_way();
    }
}
