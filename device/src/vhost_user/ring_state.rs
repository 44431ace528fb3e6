//! What the front end's thread and a worker tell each other about a ring, besides the ring itself.

use std::{
    fs::File,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
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
    /// The front end is moving the ring: its used index is still that of the old place.
    pub(super) moving: bool,
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
pub(super) struct Contention {
    /// Threads that wait, and [`Contention::STOPPING`].
    waiting: AtomicU32,
    /// The worker is notifying the front end, which may block.
    notifying: AtomicBool,
}

impl Contention {
    const STOPPING: u32 = 1 << 31;

    /// Runs `acquire`, during which a worker does not take the ring's lock again; before that calls
    /// `unblock` until the worker is not blocked by a notification.
    pub(super) fn waiting<T>(&self, unblock: impl FnMut(), acquire: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.interrupt_notification(unblock);
        let acquired = acquire();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        acquired
    }

    /// Runs `notify`, which may block, for a worker that holds the ring's lock; `false`, without
    /// that, when another thread waits for the lock.
    ///
    /// The flag is set before the count is read here, and the count is raised before the flag is
    /// read by the thread that waits: either this sees that thread and does not block, or that
    /// thread sees the flag and unblocks this one.
    pub(super) fn notify_under_lock(&self, notify: impl FnOnce()) -> bool {
        self.notify_unless(u32::MAX, notify)
    }

    /// The same without the lock; `false` when the worker is to stop.
    pub(super) fn notify(&self, notify: impl FnOnce()) -> bool {
        self.notify_unless(Self::STOPPING, notify)
    }

    fn notify_unless(&self, mask: u32, notify: impl FnOnce()) -> bool {
        self.notifying.store(true, Ordering::SeqCst);
        let may_block = self.waiting.load(Ordering::SeqCst) & mask == 0;
        if may_block {
            notify();
        }
        self.notifying.store(false, Ordering::SeqCst);
        may_block
    }

    /// Calls `unblock` until the worker is not notifying.
    fn interrupt_notification(&self, mut unblock: impl FnMut()) {
        while self.notifying.load(Ordering::SeqCst) {
            unblock();
            std::thread::yield_now();
        }
    }

    /// Yields the CPU as long as another thread waits for the lock.
    pub(super) fn give_way(&self) {
        while self.waiting.load(Ordering::SeqCst) & !Self::STOPPING > 0 {
            std::thread::yield_now();
        }
    }

    /// Makes the worker stop, and calls `unblock` until no notification blocks it.
    pub(super) fn stop(&self, unblock: impl FnMut()) {
        self.waiting.fetch_or(Self::STOPPING, Ordering::SeqCst);
        self.interrupt_notification(unblock);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) & Self::STOPPING != 0
    }

    /// Whether a pass should end soon, for a waiting thread or for good.
    pub(super) fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
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
        let waits = || {
            assert!(contention.is_contended() && !contention.is_stopping());
            // Under the lock that the other thread waits for, nothing may block.
            assert!(!contention.notify_under_lock(|| unreachable!()));
            assert!(contention.notify(|| ()));
        };
        contention.waiting(|| unreachable!(), waits);
        assert!(!contention.is_contended());
        assert!(contention.notify_under_lock(|| ()));
        contention.stop(|| unreachable!());
        assert!(!contention.notify(|| unreachable!()));
        assert!(contention.is_contended() && contention.is_stopping());
        // Nothing waits: a stopping worker is not kept from its last pass.
        contention.give_way();
    }

    /// A worker whose notification blocks is unblocked by the thread that waits for it.
    #[test]
    fn a_blocked_notification_is_interrupted() {
        let contention = Contention::default();
        let blocked = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                contention.notify_under_lock(|| {
                    while blocked.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                })
            });
            while !contention.notifying.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let unblock = || blocked.store(false, Ordering::SeqCst);
            contention.waiting(unblock, || ());
            worker.join().unwrap();
        });
        assert!(!blocked.load(Ordering::SeqCst));
    }
}
