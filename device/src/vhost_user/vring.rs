//! A ring as `vhost-user-backend` configures it and a worker runs it.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, MutexGuard},
};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::{
    event::{self, Event},
    ring_state::{Contention, Notifiers, RingState, SharedRingState, StateCache},
};
use crate::{sigbus, virtqueue::MAX_QUEUE_SIZE};

/// Guest memory, as the front end's latest memory table describes it.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

#[derive(Debug)]
struct Shared {
    state: SharedRingState,
    contention: Contention,
    /// Wakes the worker.
    wake: Event,
}

/// One ring. Clones refer to the same ring.
#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Memory>,
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
        self.shared.contention.waiting(|| self.inner.get_mut())
    }

    /// Waits until a pass that may have begun before this call has ended.
    pub(super) fn drain(&self) {
        drop(self.lock_for_frontend());
    }

    /// Makes the worker check the ring and the state of its session.
    pub(super) fn wake(&self) {
        self.shared.wake.signal();
    }

    /// Ends the worker. A call descriptor that the front end does not read is reset, in case the
    /// worker is blocked on it.
    pub(super) fn stop(&self) {
        self.shared.contention.stop();
        self.wake();
        if let Some(call) = self.notifiers().call {
            event::unblock_writer(&call);
        }
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

    /// Stops the ring until it is reconfigured, and signals its error descriptor.
    pub(super) fn mark_broken(&self) {
        let error = self.shared.state.update(|state| {
            state.broken = true;
            state.notifiers.error.clone()
        });
        if let Some(error) = error {
            event::notify(&error);
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
            inner: VringMutex::new(memory, max_queue_size)?,
            shared: Arc::new(Shared {
                state: SharedRingState::default(),
                contention: Contention::default(),
                wake,
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
        if let Some(call) = self.notifiers().call {
            event::notify(&call);
        }
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
        self.lock_for_frontend()
            .set_queue_info(desc_table, avail_ring, used_ring)?;
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
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        // Only the inner ring has this accessor, which takes the lock itself.
        let index = self
            .shared
            .contention
            .waiting(|| sigbus::guarded(|| self.inner.queue_used_idx()));
        match sigbus::take_fault() {
            Some(_) => Err(QueueError::QueueNotReady),
            None => index,
        }
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
        // The inner ring starts only if it has a kick descriptor.
        let duplicate = file.as_ref().map(File::try_clone).transpose();
        self.inner.set_kick(duplicate.unwrap_or_else(|e| {
            log::warn!(
                "cannot duplicate a kick descriptor: {e}; its queue does not start; raise the limit \
                 on open files"
            );
            None
        }));
        if let Some(file) = &file
            && let Err(e) = event::set_nonblocking(file)
        {
            log::warn!("cannot set O_NONBLOCK on a kick descriptor: {e}");
        }
        self.set_notifier(|notifiers| notifiers.kick = file.map(Arc::new));
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(self.lock_for_frontend().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let call = file.map(Arc::new);
        self.set_notifier(|notifiers| notifiers.call.clone_from(&call));
        if let Some(call) = call {
            // The driver may not have been notified of what has completed so far: the worker used
            // the old descriptor, or had none.
            self.drain();
            event::notify(&call);
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.set_notifier(|notifiers| notifiers.error = file.map(Arc::new));
    }
}
