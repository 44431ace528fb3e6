//! A ring as `vhost-user-backend` configures it and a worker runs it.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    },
};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap};

use super::{
    event::{self, Event},
    ring_state::{Contention, Notifiers, RingState, SharedRingState, StateCache},
};
use crate::{
    lock::lock,
    log_limit::LogLimit,
    sigbus::{self, Owner, Watched},
    virtqueue::MAX_QUEUE_SIZE,
};

/// Guest memory, as the front end's latest memory table describes it.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

#[derive(Debug)]
struct Shared {
    state: SharedRingState,
    contention: Contention,
    /// Wakes the worker.
    wake: Event,
    log_limit: LogLimit,
    /// Notifications that the worker still has to send: [`CALL`] and [`ERROR`].
    owed: AtomicU8,
    /// The counter that the worker notified last, or is notifying.
    target: Mutex<Option<Arc<File>>>,
}

/// The driver is owed a call.
const CALL: u8 = 1;
/// The driver is owed an error notification.
const ERROR: u8 = 2;

impl Shared {
    /// Unblocks the worker, if a counter blocks it.
    fn unblock(&self) {
        let target = lock(&self.target).clone();
        if let Some(counter) = target {
            event::unblock_writer(&counter);
        }
    }

    fn set_target(&self, counter: &Arc<File>) {
        let mut target = lock(&self.target);
        if !target.as_ref().is_some_and(|t| Arc::ptr_eq(t, counter)) {
            *target = Some(Arc::clone(counter));
        }
    }
}

/// One ring. Clones refer to the same ring.
#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Memory>,
    memory: Memory,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Vring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vring")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

thread_local! {
    /// Rings created on this thread. The constructor of `VhostUserDaemon` calls `VringT::new` and
    /// does not return the rings.
    static CREATED: RefCell<Vec<Vring>> = const { RefCell::new(Vec::new()) };
}

/// Runs `create` and also returns the rings that it created, in order.
pub(super) fn collect_rings<T>(create: impl FnOnce() -> T) -> (T, Vec<Vring>) {
    CREATED.with_borrow_mut(Vec::clear);
    let created = create();
    (created, CREATED.take())
}

/// For the front end's threads.
impl Vring {
    /// Takes the ring's lock on behalf of the front end; a worker yields it between passes.
    fn lock_for_frontend(&self) -> MutexGuard<'_, VringState<Memory>> {
        let Shared { contention, .. } = &*self.shared;
        contention.waiting(|| self.shared.unblock(), || self.inner.get_mut())
    }

    /// Waits until a pass that may have begun before this call has ended.
    pub(super) fn drain(&self) {
        drop(self.lock_for_frontend());
    }

    /// Makes the worker check the ring and the state of its session.
    pub(super) fn wake(&self) {
        self.shared.wake.signal();
    }

    /// Ends the worker.
    pub(super) fn stop(&self) {
        self.shared.contention.stop(|| self.shared.unblock());
        self.wake();
    }

    /// Lets a broken ring run again, and makes the worker forget what it knew about it.
    fn reconfigured(&self) {
        self.shared.state.update(|state| {
            state.broken = false;
            state.generation += 1;
        });
        self.wake();
    }

    fn set_notifier(&self, change: impl FnOnce(&mut Notifiers)) {
        self.shared
            .state
            .update(|state| change(&mut state.notifiers));
        self.wake();
    }

    /// Accepts an event counter of the front end; `None` for any other descriptor.
    fn adopt(&self, file: Option<File>, purpose: &str) -> Option<Arc<File>> {
        let adopted = event::adopt(file?);
        if let Err(e) = &adopted
            && self.shared.log_limit.pass().is_some()
        {
            log::warn!(
                "unusable {purpose} descriptor: {e}; waiting for the front end to set another"
            );
        }
        adopted.ok()
    }

    fn notifiers(&self) -> Notifiers {
        self.shared.state.read(|state| state.notifiers.clone())
    }
}

/// For the worker.
impl Vring {
    /// Takes the ring's lock for a pass.
    pub(super) fn lock_for_pass(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.shared.contention.give_way();
        self.inner.get_mut()
    }

    /// Brings a copy of the state up to date. To be done under the ring's lock: a thread that
    /// replaces a notifier and then takes the lock once knows that the old one is no longer used.
    pub(super) fn refresh<'c>(&self, cache: &'c mut StateCache) -> &'c RingState {
        cache.refresh(&self.shared.state)
    }

    /// Whether a pass should end soon, for a waiting thread or for good.
    pub(super) fn is_contended(&self) -> bool {
        self.shared.contention.is_contended()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.shared.contention.is_stopping()
    }

    /// Stops the ring until it is reconfigured; the worker then signals its error descriptor.
    pub(super) fn mark_broken(&self) {
        self.shared.state.update(|state| state.broken = true);
        self.shared.owed.fetch_or(ERROR, Ordering::SeqCst);
    }

    /// Notifies the driver of used entries, for a worker that holds the ring's lock. If another
    /// thread waits for the lock, the notification is sent after its release.
    pub(super) fn call_under_lock(&self, call: &Arc<File>) {
        self.shared.set_target(call);
        let contention = &self.shared.contention;
        if !contention.notify_under_lock(|| event::notify(call)) {
            self.shared.owed.fetch_or(CALL, Ordering::SeqCst);
        }
    }

    /// Sends the notifications that are owed. The worker must not hold the ring's lock.
    pub(super) fn send_owed(&self) {
        if self.shared.owed.load(Ordering::Relaxed) == 0 {
            return;
        }
        let owed = self.shared.owed.swap(0, Ordering::SeqCst);
        let Notifiers { call, error, .. } = self.notifiers();
        for (counter, bit) in [(call, CALL), (error, ERROR)] {
            if let Some(counter) = counter.filter(|_| owed & bit != 0) {
                self.shared.set_target(&counter);
                // Once the worker is to stop nothing waits for it.
                self.shared.contention.notify(|| event::notify(&counter));
            }
        }
    }

    /// Removes a kick descriptor that turned out to be unusable, unless it has been replaced.
    pub(super) fn drop_kick(&self, unusable: &Arc<File>) {
        self.shared.state.update(|state| {
            state
                .notifiers
                .kick
                .take_if(|kick| Arc::ptr_eq(kick, unusable));
        });
    }

    /// The descriptor that [`Vring::wake`] makes readable.
    pub(super) fn wake_up(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Consumes a wake-up.
    pub(super) fn consume_wake_up(&self) {
        self.shared.wake.clear();
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let wake = Event::new().map_err(|e| {
            log::error!("cannot create an eventfd: {e}; raise the limit on open files");
            QueueError::QueueNotReady
        })?;
        let ring = Self {
            inner: VringMutex::new(memory.clone(), max_queue_size)?,
            memory,
            shared: Arc::new(Shared {
                state: SharedRingState::default(),
                contention: Contention::default(),
                wake,
                log_limit: LogLimit::default(),
                owed: AtomicU8::new(0),
                target: Mutex::default(),
            }),
        };
        CREATED.with_borrow_mut(|created| created.push(ring.clone()));
        Ok(ring)
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.lock_for_frontend()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.lock_for_frontend()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.lock_for_frontend().add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.shared.owed.fetch_or(CALL, Ordering::SeqCst);
        self.wake();
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.lock_for_frontend().enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.lock_for_frontend().disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.lock_for_frontend().needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.lock_for_frontend().set_enabled(enabled);
        self.wake();
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        // The crate reads the used index at the new place next, and sets it after that. What a
        // running ring completed in between would be overwritten.
        self.shared.state.update(|state| state.moving = true);
        let placed = self
            .lock_for_frontend()
            .set_queue_info(desc_table, avail_ring, used_ring);
        if placed.is_err() {
            self.shared.state.update(|state| state.moving = false);
        }
        placed?;
        self.reconfigured();
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.lock_for_frontend().get_queue().next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.lock_for_frontend()
            .get_queue_mut()
            .set_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.lock_for_frontend().get_queue_mut().set_next_used(idx);
        self.shared.state.update(|state| state.moving = false);
        self.wake();
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        // Only the inner ring has this accessor, which takes the lock itself.
        let table = self.memory.memory();
        let watched: Vec<Watched> = table
            .iter()
            .map(|region| Watched::new(region.get_mmap(), Owner::Guest))
            .collect();
        sigbus::guarded(&watched, || {
            let index = self
                .shared
                .contention
                .waiting(|| self.shared.unblock(), || self.inner.queue_used_idx());
            if sigbus::is_guest_memory_truncated() {
                return Err(QueueError::QueueNotReady);
            }
            index
        })
    }

    fn set_queue_size(&self, num: u16) {
        // The queue would keep its old size and only log that. The ring is to fail instead.
        let valid = num.is_power_of_two() && num <= MAX_QUEUE_SIZE;
        let invalid_size = (!valid).then_some(num);
        self.shared
            .state
            .update(|state| state.invalid_size = invalid_size);
        if valid {
            self.lock_for_frontend().get_queue_mut().set_size(num);
        }
        self.reconfigured();
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.lock_for_frontend()
            .get_queue_mut()
            .set_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.lock_for_frontend().get_queue_mut().set_ready(ready);
        if ready {
            self.reconfigured();
        }
    }

    fn set_kick(&self, file: Option<File>) {
        let kick = self.adopt(file, "kick");
        let file = kick.as_deref();
        // The inner ring starts only if it has a kick descriptor.
        let duplicate = file.map(File::try_clone).transpose();
        self.inner.set_kick(duplicate.unwrap_or_else(|e| {
            log::warn!(
                "cannot duplicate a kick descriptor: {e}; its queue does not start; raise the limit \
                 on open files"
            );
            None
        }));
        self.set_notifier(|notifiers| notifiers.kick = kick);
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(self.lock_for_frontend().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let call = self.adopt(file, "call");
        let replaced = call.is_some();
        self.set_notifier(|notifiers| notifiers.call = call);
        if replaced {
            // The driver may not have been notified of what has completed so far: the worker used
            // the old descriptor, or had none.
            self.drain();
            self.shared.owed.fetch_or(CALL, Ordering::SeqCst);
            self.wake();
        }
    }

    fn set_err(&self, file: Option<File>) {
        let error = self.adopt(file, "error");
        self.set_notifier(|notifiers| notifiers.error = error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SET_VRING_ADDR` sets the place of a ring first and its used index later.
    #[test]
    fn a_ring_does_not_run_while_it_moves() {
        let memory = Memory::new(GuestMemoryMmap::new());
        let ring = Vring::new(memory, 256).unwrap();
        let mut cache = StateCache::default();
        let mut moving = || ring.refresh(&mut cache).moving;
        ring.set_queue_info(0x1000, 0x2000, 0x3000).unwrap();
        assert!(moving());
        ring.set_queue_next_used(0);
        assert!(!moving());
        ring.set_queue_info(1, 2, 3).unwrap_err();
        assert!(!moving());
    }
}
