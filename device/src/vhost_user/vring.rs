//! A ring as `vhost-user-backend` sets it up and a worker runs it.

use std::{
    cell::RefCell,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::{
    bus_error,
    queue::{MAX_QUEUE_SIZE, RingError},
};

pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Locks a mutex of which no holder leaves the data half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The descriptors through which a ring's two sides notify each other.
#[derive(Clone, Debug, Default)]
pub(super) struct Notifiers {
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Option<Arc<File>>,
    pub(super) error: Option<Arc<File>>,
}

#[derive(Debug)]
struct Shared {
    notifiers: Mutex<Notifiers>,
    /// Counts changes of `notifiers`.
    notifiers_version: AtomicU64,
    /// Counts starts and new placements: what a worker remembers of an older one is void.
    setup_version: AtomicU64,
    /// The socket's thread wants the ring's lock: a worker must not take it again at once.
    waiting: AtomicU32,
    /// The last requested size, when it is none that a ring can have; otherwise 0.
    bad_size: AtomicU32,
    /// The ring was found corrupt, and has not been set up anew since.
    broken: AtomicBool,
    stopping: AtomicBool,
    wake: OwnedFd,
}

impl std::fmt::Debug for Vring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vring")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// One ring. Clones are the same ring.
#[derive(Clone)]
pub(super) struct Vring {
    inner: VringMutex<Memory>,
    shared: Arc<Shared>,
}

thread_local! {
    /// Rings made on this thread: `VringT::new` is called deep inside of the daemon's constructor,
    /// which hands them to nobody.
    static CREATED: RefCell<Vec<Vring>> = const { RefCell::new(Vec::new()) };
}

/// Runs `make` and also returns the rings that it made, in order.
pub(super) fn collect_rings<T>(make: impl FnOnce() -> T) -> (T, Vec<Vring>) {
    CREATED.with_borrow_mut(Vec::clear);
    let made = make();
    (made, CREATED.take())
}

impl Vring {
    /// Takes the ring's lock on behalf of the front end; a worker yields to this between passes.
    fn attend(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = self.inner.get_mut();
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        guard
    }

    /// Takes the ring's lock for a pass.
    pub(super) fn for_pass(&self) -> MutexGuard<'_, VringState<Memory>> {
        while self.shared.waiting.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.inner.get_mut()
    }

    /// Waits until a pass that may have begun before this call has ended.
    pub(super) fn drain(&self) {
        drop(self.attend());
    }

    /// Makes the worker look at the ring and at what surrounds it.
    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the worker is about to wake.
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
    }

    /// Ends the worker. A call descriptor that nobody empties is emptied, in case the worker is
    /// blocked on it.
    pub(super) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(call) = lock(&self.shared.notifiers).call.as_deref()
            && is_ready(call, PollFlags::IN)
        {
            let _ = rustix::io::read(call, &mut [0u8; 8]);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    /// Whether a pass should end soon: for the front end, or for good.
    pub(super) fn is_wanted(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) > 0
            || self.shared.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::SeqCst)
    }

    /// The requested size, when no ring can have it.
    pub(super) fn bad_size(&self) -> Option<RingError> {
        match self.shared.bad_size.load(Ordering::SeqCst) {
            0 => None,
            size => Some(RingError::Size(size)),
        }
    }

    /// Stops the ring until it is set up anew, and tells the front end.
    pub(super) fn break_down(&self) {
        self.shared.broken.store(true, Ordering::SeqCst);
        if let Some(error) = lock(&self.shared.notifiers).error.as_deref() {
            notify(error);
        }
    }

    fn set_up_anew(&self) {
        self.shared.broken.store(false, Ordering::SeqCst);
        self.shared.setup_version.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    /// Changes each time that the ring is started or placed.
    pub(super) fn setup_version(&self) -> u64 {
        self.shared.setup_version.load(Ordering::SeqCst)
    }

    /// Changes each time that a notifier is replaced.
    pub(super) fn notifiers_version(&self) -> u64 {
        self.shared.notifiers_version.load(Ordering::SeqCst)
    }

    pub(super) fn notifiers(&self) -> Notifiers {
        lock(&self.shared.notifiers).clone()
    }

    /// Forgets a kick descriptor that does not work as one.
    pub(super) fn drop_kick(&self, dead: &Arc<File>) {
        let mut notifiers = lock(&self.shared.notifiers);
        if notifiers
            .kick
            .as_ref()
            .is_some_and(|kick| Arc::ptr_eq(kick, dead))
        {
            notifiers.kick = None;
            self.shared.notifiers_version.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn set_notifier(&self, change: impl FnOnce(&mut Notifiers)) {
        change(&mut lock(&self.shared.notifiers));
        self.shared.notifiers_version.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    /// What [`Vring::wake`] makes readable.
    pub(super) fn wake_up(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Takes what [`Vring::wake`] left.
    pub(super) fn take_wake_up(&self) {
        // Fails only when another call was faster.
        let _ = rustix::io::read(&self.shared.wake, &mut [0u8; 8]);
    }
}

fn is_ready(fd: &File, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(rustix::event::poll(&mut fds, Some(&at_once)), Ok(1))
}

/// Adds one to an event counter, unless that would block: a full counter has been noticed anyway.
pub(super) fn notify(counter: &File) {
    let blocks = !rustix::fs::fcntl_getfl(counter)
        .is_ok_and(|flags| flags.contains(rustix::fs::OFlags::NONBLOCK));
    if blocks && !is_ready(counter, PollFlags::OUT) {
        return;
    }
    if let Err(e) = rustix::io::write(counter, &1u64.to_ne_bytes()) {
        log::debug!("cannot notify the front end: {e}");
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
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags).map_err(|e| {
            log::error!("cannot make an event descriptor: {e}; raise the limit on open files");
            QueueError::QueueNotReady
        })?;
        let ring = Self {
            inner: VringMutex::new(memory, max_queue_size)?,
            shared: Arc::new(Shared {
                notifiers: Mutex::default(),
                notifiers_version: AtomicU64::new(0),
                setup_version: AtomicU64::new(0),
                waiting: AtomicU32::new(0),
                bad_size: AtomicU32::new(0),
                broken: AtomicBool::new(false),
                stopping: AtomicBool::new(false),
                wake,
            }),
        };
        CREATED.with_borrow_mut(|created| created.push(ring.clone()));
        Ok(ring)
    }

    fn get_ref(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.attend()
    }

    fn get_mut(&self) -> MutexGuard<'_, VringState<Memory>> {
        self.attend()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.attend().add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        if let Some(call) = self.notifiers().call {
            notify(&call);
        }
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.attend().enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.attend().disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.attend().needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.attend().set_enabled(enabled);
        self.wake();
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), QueueError> {
        self.attend()
            .set_queue_info(desc_table, avail_ring, used_ring)?;
        self.set_up_anew();
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.attend().get_queue().next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.attend().get_queue_mut().set_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.attend().get_queue_mut().set_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        // Through the inner ring: it alone knows the memory. `get_ref` would not do, for the
        // accessor is not on the state.
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        let index = bus_error::guarded(|| self.inner.queue_used_idx());
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
        match bus_error::take_fault() {
            Some(_) => Err(QueueError::QueueNotReady),
            None => index,
        }
    }

    fn set_queue_size(&self, num: u16) {
        // The queue would keep its old size and say so only in the log.
        let sound = num.is_power_of_two() && num <= MAX_QUEUE_SIZE;
        let bad = if sound { 0 } else { u32::from(num) };
        self.shared.bad_size.store(bad, Ordering::SeqCst);
        if sound {
            self.attend().get_queue_mut().set_size(num);
        }
        self.set_up_anew();
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.attend().get_queue_mut().set_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.attend().get_queue_mut().set_ready(ready);
        if ready {
            self.set_up_anew();
        }
    }

    fn set_kick(&self, file: Option<File>) {
        // The inner ring only has to know that there is one.
        let known = file.as_ref().map(File::try_clone).transpose();
        self.inner.set_kick(known.unwrap_or_else(|e| {
            log::warn!(
                "kick descriptor: {e}; its queue does not start; raise the limit on open files"
            );
            None
        }));
        if let Some(file) = &file
            && let Err(e) = set_nonblocking(file)
        {
            log::warn!("kick descriptor of the front end: {e}");
        }
        self.set_notifier(|notifiers| notifiers.kick = file.map(Arc::new));
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(self.attend().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let call = file.map(Arc::new);
        self.set_notifier(|notifiers| notifiers.call.clone_from(&call));
        if let Some(call) = call {
            // What completed until now was announced through the old descriptor, or not at all.
            self.drain();
            notify(&call);
        }
    }

    fn set_err(&self, file: Option<File>) {
        self.set_notifier(|notifiers| notifiers.error = file.map(Arc::new));
    }
}

/// A worker must not be caught reading a counter that the front end empties first.
fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    rustix::fs::fcntl_setfl(file, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}
