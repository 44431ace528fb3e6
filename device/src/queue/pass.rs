//! One pass over a queue: take what is available, serve it, publish and notify in batches.

use virtio_queue::{Queue, QueueT};

use super::{Chain, GuestView, Ring, RingError, Scratch};
use crate::bus_error;
use crate::engine::Engine;
use crate::request::{self, Served};

/// Most requests between two publications of the used index, and so for one call.
const BATCH_REQUESTS: u16 = 32;

/// Data bytes after which a batch ends early, so that finished requests do not wait for long ones.
const BATCH_BYTES: u64 = 256 << 10;

/// Batches of one pass; then others get their turn at the queue.
const PASS_BATCHES: usize = 8;

/// How the driver learns of used entries.
pub trait Notify {
    /// Notifies the driver.
    fn call(&mut self);
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing is available, and the driver will kick when that changes.
    Idle,
    /// More may be available: make another pass.
    More,
}

/// Serves the requests of one queue.
#[derive(Debug)]
pub struct Processor {
    engine: Engine,
    scratch: Option<Scratch>,
    /// Used index at the last decision on a call; `None` after a start, when the driver's wish is
    /// not known to be younger than the ring.
    signalled: Option<u16>,
}

impl Processor {
    /// A processor that serves with `engine`.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            scratch: None,
            signalled: None,
        }
    }

    /// Forgets what was known of the ring: it has been set up anew.
    pub fn restart(&mut self) {
        self.signalled = None;
    }

    /// Makes a pass over `queue`.
    ///
    /// # Errors
    ///
    /// The ring is corrupt. What was served before is published.
    pub fn pass(
        &mut self,
        queue: &mut Queue,
        view: &GuestView,
        notify: &mut dyn Notify,
    ) -> Result<Pass, RingError> {
        let ring = Ring::new(queue, view)?;
        let mut chain = Chain::new(self.scratch.take().unwrap_or_default());
        let result = bus_error::guarded(|| self.batches(queue, &ring, view, &mut chain, notify));
        self.scratch = Some(chain.into_scratch());
        match bus_error::take_fault() {
            // Nothing that was read or written since can be believed.
            Some(_) => Err(RingError::MemoryVanished),
            None => result,
        }
    }

    fn batches<'m>(
        &mut self,
        queue: &mut Queue,
        ring: &Ring<'m>,
        view: &'m GuestView,
        chain: &mut Chain<'m>,
        notify: &mut dyn Notify,
    ) -> Result<Pass, RingError> {
        for _ in 0..PASS_BATCHES {
            let available = ring.available(queue.next_avail())?;
            if available == 0 {
                ring.request_kick(queue.next_avail());
                if ring.available(queue.next_avail())? == 0 {
                    return Ok(Pass::Idle);
                }
                continue;
            }
            ring.suppress_kicks();
            let served = self.batch(queue, ring, view, chain, available);
            self.publish(queue, ring, notify);
            served?;
        }
        Ok(Pass::More)
    }

    /// Serves up to `available` requests without publishing them.
    fn batch<'m>(
        &mut self,
        queue: &mut Queue,
        ring: &Ring<'m>,
        view: &'m GuestView,
        chain: &mut Chain<'m>,
        available: u16,
    ) -> Result<(), RingError> {
        let mut bytes = 0;
        for _ in 0..available.min(BATCH_REQUESTS) {
            let head = ring.head(queue.next_avail());
            chain.walk(head, ring, view)?;
            let served: Served = request::serve(&mut self.engine, chain);
            if bus_error::fault().is_some() {
                return Err(RingError::MemoryVanished);
            }
            log::trace!("head {head}: {served:?}");
            queue.set_next_avail(queue.next_avail().wrapping_add(1));
            ring.write_used(queue.next_used(), head, served.written);
            queue.set_next_used(queue.next_used().wrapping_add(1));
            bytes += u64::from(served.transferred);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(())
    }

    fn publish(&mut self, queue: &Queue, ring: &Ring<'_>, notify: &mut dyn Notify) {
        let new = queue.next_used();
        ring.publish(new);
        let wanted = match self.signalled {
            Some(old) if old == new => return,
            Some(old) => ring.wants_call(old, new),
            None => true,
        };
        self.signalled = Some(new);
        if wanted {
            notify.call();
        }
    }
}
