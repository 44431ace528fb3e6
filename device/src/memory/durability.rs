//! Making device memory durable, once for all who ask at the same time.

use std::{
    io,
    sync::{Condvar, Mutex, PoisonError},
};

use crate::lock::lock;

/// What is durable.
#[derive(Debug, Default)]
pub(super) struct Durability {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Syncs that have begun, and that have ended. At most one is in flight.
    begun: u64,
    ended: u64,
    /// A sync has failed. The kernel reports that once and may have dropped the data, so that a
    /// later sync would succeed without them.
    failed: bool,
    /// Callers that wait for a sync in flight.
    #[cfg(test)]
    waiting: u32,
}

impl Durability {
    /// Makes durable what was written before the call, by `sync`. Callers that come while a sync is
    /// in flight share the next one, which one of them executes.
    ///
    /// # Errors
    ///
    /// A sync has failed, now or earlier: what is durable is unknown, and stays so.
    pub(super) fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = lock(&self.state);
        // A sync in flight may have passed over what was written before this call.
        let wanted = state.begun + 1;
        loop {
            if state.failed {
                return Err(io::Error::other(
                    "an earlier sync failed, so that what is durable is unknown",
                ));
            }
            if state.ended >= wanted {
                return Ok(());
            }
            if state.begun == state.ended {
                break;
            }
            #[cfg(test)]
            {
                state.waiting += 1;
            }
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            #[cfg(test)]
            {
                state.waiting -= 1;
            }
        }
        state.begun += 1;
        drop(state);
        let result = sync();
        let mut state = lock(&self.state);
        state.ended = state.begun;
        state.failed = result.is_err();
        self.ended.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            atomic::{AtomicU32, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    #[test]
    fn a_failed_sync_is_not_forgotten() {
        let durability = Durability::default();
        assert!(durability.flush(|| Ok(())).is_ok());
        let failed = durability.flush(|| Err(io::Error::from_raw_os_error(libc::EIO)));
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
        for _ in 0..3 {
            let again = durability.flush(|| panic!("nothing is left to sync"));
            assert!(again.is_err());
        }
    }

    /// Begins a sync that ends when the sender is used, and `waiters` flushes meanwhile; returns
    /// the number of syncs and the results of the waiters.
    fn flush_together(waiters: u32, second: fn() -> io::Result<()>) -> (u32, Vec<bool>) {
        let durability = Durability::default();
        let syncs = AtomicU32::new(0);
        let (end_first, first_ends) = mpsc::channel();
        let (begun, has_begun) = mpsc::channel();
        thread::scope(|scope| {
            let (durability, syncs) = (&durability, &syncs);
            let first = scope.spawn(move || {
                durability.flush(|| {
                    syncs.fetch_add(1, Ordering::SeqCst);
                    begun.send(()).unwrap();
                    first_ends.recv().map_err(io::Error::other)
                })
            });
            has_begun.recv().unwrap();
            let threads: Vec<_> = (0..waiters)
                .map(|_| {
                    scope.spawn(move || {
                        let sync = || {
                            syncs.fetch_add(1, Ordering::SeqCst);
                            second()
                        };
                        durability.flush(sync).is_ok()
                    })
                })
                .collect();
            while lock(&durability.state).waiting < waiters {
                thread::yield_now();
            }
            end_first.send(()).unwrap();
            assert!(first.join().unwrap().is_ok());
            let results = threads.into_iter().map(|one| one.join().unwrap()).collect();
            (syncs.load(Ordering::SeqCst), results)
        })
    }

    #[test]
    fn flushes_share_one_sync_that_begins_after_them() {
        for waiters in [1, 8] {
            let (syncs, results) = flush_together(waiters, || Ok(()));
            assert_eq!((syncs, results), (2, vec![true; waiters as usize]));
        }
    }

    #[test]
    fn a_failed_sync_fails_all_who_wait_for_it() {
        let (syncs, results) = flush_together(8, || Err(io::ErrorKind::Other.into()));
        assert_eq!((syncs, results), (2, vec![false; 8]));
    }
}
