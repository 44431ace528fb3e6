//! One pass over a queue: take what is available, serve it, publish and notify in batches.

use std::{sync::Arc, time::Instant};

use vdma_protocol::Operation;
use virtio_queue::{Queue, QueueT};

use super::{Chain, GuestView, Ring, RingError, Scratch};
use crate::{
    bus_error,
    engine::Engine,
    fault::{Injector, Plan},
    metrics::{QueueMetrics, nanoseconds},
    request::{Request, Served},
};

/// Most requests between two publications of the used index, and so for one call.
pub const MAX_BATCH: usize = 32;

/// Data bytes after which a batch ends early, so that finished requests do not wait for long ones.
const BATCH_BYTES: u64 = 256 << 10;

/// Batches of one pass; then others get their turn at the queue.
const PASS_BATCHES: usize = 8;

/// What to do about an empty ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Empty {
    /// Look at it again at once.
    LookAgain,
    /// End the pass; the next one comes soon, without a kick.
    Leave,
    /// Have the driver kick, and end the pass.
    AskForKick,
}

/// What a pass needs of those around it.
pub trait Surroundings {
    /// Notifies the driver of used entries.
    fn call(&mut self);

    /// Nothing is available: what to do about it.
    fn on_empty(&mut self) -> Empty {
        Empty::AskForKick
    }

    /// Looking again has found something.
    fn found(&mut self) {}

    /// The request at `head` has been served; its completion may still be to come.
    fn served(&mut self, _head: u16, _served: Served) {}
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing is available, and the driver will kick when that changes.
    Idle,
    /// More may be available: make another pass.
    More,
    /// Nothing is available, and the driver will not kick ([`Empty::Leave`]): make another pass soon.
    Left,
    /// The next request is held back on purpose until then.
    Held(Instant),
}

/// Serves the requests of one queue.
#[derive(Debug)]
pub struct Processor {
    engine: Engine,
    metrics: Arc<QueueMetrics>,
    injector: Option<Injector>,
    held: Option<Held>,
    scratch: Option<Scratch>,
    /// The last pass ended with [`Pass::Left`].
    left: bool,
    /// Used index at the last decision on a call; `None` after a start, when the driver's wish is
    /// not known to be younger than the ring.
    signalled: Option<u16>,
}

/// A request that waits for its time, with what will happen to it then.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// Where it stands in the available ring.
    index: u16,
    plan: Plan,
    until: Instant,
}

/// How looking at an empty ring ended.
enum Look {
    Found,
    Left,
    InVain,
}

/// The requests of a batch.
#[derive(Default)]
struct Batch {
    operations: [Option<Operation>; MAX_BATCH],
    count: usize,
    /// A used entry that waits for the next one to go first.
    swapped: Option<(u16, Served)>,
    held: Option<Instant>,
}

impl Processor {
    /// A processor that serves with `engine`, counts in `metrics`, and asks `injector` for faults.
    #[must_use]
    pub fn new(engine: Engine, metrics: Arc<QueueMetrics>, injector: Option<Injector>) -> Self {
        Self {
            engine,
            metrics,
            injector,
            held: None,
            scratch: None,
            left: false,
            signalled: None,
        }
    }

    /// Forgets what was known of the ring: it has been set up anew.
    pub fn restart(&mut self) {
        self.signalled = None;
        self.held = None;
        self.left = false;
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
        around: &mut impl Surroundings,
    ) -> Result<Pass, RingError> {
        let ring = Ring::new(queue, view)?;
        let mut chain = Chain::new(self.scratch.take().unwrap_or_default());
        let result = bus_error::guarded(|| self.batches(queue, &ring, view, &mut chain, around));
        self.scratch = Some(chain.into_scratch());
        let result = match bus_error::take_fault() {
            // Nothing that was read or written since can be believed.
            Some(_) => Err(RingError::MemoryVanished),
            None => result,
        };
        self.metrics.ring_errors.add(u64::from(result.is_err()));
        result
    }

    fn batches<'m>(
        &mut self,
        queue: &mut Queue,
        ring: &Ring<'m>,
        view: &'m GuestView,
        chain: &mut Chain<'m>,
        around: &mut impl Surroundings,
    ) -> Result<Pass, RingError> {
        if std::mem::take(&mut self.left) {
            let available = ring.available(queue.next_avail())?;
            if available > 0 {
                self.found(available, around);
            }
        }
        for _ in 0..PASS_BATCHES {
            let available = ring.available(queue.next_avail())?;
            if available == 0 {
                match self.look(queue, ring, around)? {
                    Look::Found => continue,
                    Look::Left => {
                        self.left = true;
                        return Ok(Pass::Left);
                    }
                    Look::InVain => {}
                }
                ring.request_kick(queue.next_avail());
                if ring.available(queue.next_avail())? == 0 {
                    return Ok(Pass::Idle);
                }
                continue;
            }
            ring.suppress_kicks();
            let begin = Instant::now();
            let mut batch = Batch::default();
            let result = self.batch(queue, ring, view, chain, around, (available, &mut batch));
            self.complete_swapped(queue, ring, &mut batch);
            // Before the driver can see the requests, and so look at the counters.
            self.record(&batch, begin);
            self.publish(queue, ring, around);
            result?;
            if let Some(until) = batch.held {
                return Ok(Pass::Held(until));
            }
        }
        Ok(Pass::More)
    }

    /// Looks at an empty ring as long as that is wanted.
    fn look(
        &self,
        queue: &Queue,
        ring: &Ring<'_>,
        around: &mut impl Surroundings,
    ) -> Result<Look, RingError> {
        loop {
            match around.on_empty() {
                Empty::LookAgain => {}
                Empty::Leave => return Ok(Look::Left),
                Empty::AskForKick => return Ok(Look::InVain),
            }
            std::hint::spin_loop();
            let available = ring.available(queue.next_avail())?;
            if available > 0 {
                self.found(available, around);
                return Ok(Look::Found);
            }
        }
    }

    /// Requests were found without a kick.
    fn found(&self, available: u16, around: &mut impl Surroundings) {
        around.found();
        self.metrics.poll_hits.add(u64::from(available));
    }

    /// Serves up to `available` requests without publishing them.
    fn batch<'m>(
        &mut self,
        queue: &mut Queue,
        ring: &Ring<'m>,
        view: &'m GuestView,
        chain: &mut Chain<'m>,
        around: &mut impl Surroundings,
        (available, batch): (u16, &mut Batch),
    ) -> Result<(), RingError> {
        let mut bytes = 0;
        for _ in 0..usize::from(available).min(MAX_BATCH) {
            let head = ring.head(queue.next_avail());
            chain.walk(head, ring, view)?;
            let request = Request::new(chain);
            let served = match self.plan(&request, queue.next_avail()) {
                None => {
                    let served = request.serve(&mut self.engine);
                    self.advance(queue, batch, served);
                    check_memory()?;
                    self.complete(queue, ring, head, served.written, batch);
                    served
                }
                Some(plan) => {
                    if let Some(held) = self.held.filter(|held| held.until > Instant::now()) {
                        batch.held = Some(held.until);
                        return Ok(());
                    }
                    self.held = None;
                    let served = request.serve_with(&mut self.engine, &plan);
                    self.advance(queue, batch, served);
                    check_memory()?;
                    self.complete_faulty(queue, ring, head, served, &plan, batch)?;
                    served
                }
            };
            around.served(head, served);
            bytes += u64::from(served.transferred);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        Ok(())
    }

    /// What goes wrong with the request at `index` of the available ring, if anything does. The
    /// same answer for one that is held until it is served.
    fn plan(&mut self, request: &Request<'_, '_>, index: u16) -> Option<Plan> {
        let injector = self.injector.as_mut()?;
        if let Some(held) = self.held.filter(|held| held.index == index) {
            return Some(held.plan);
        }
        let metrics = &self.metrics;
        let plan = injector.plan(request.header()?, |kind| metrics.injected(kind))?;
        self.held = plan.delay.map(|delay| Held {
            index,
            plan,
            until: Instant::now() + delay,
        });
        Some(plan)
    }

    /// Takes a request off the available ring and counts it.
    fn advance(&self, queue: &mut Queue, batch: &mut Batch, served: Served) {
        queue.set_next_avail(queue.next_avail().wrapping_add(1));
        batch.operations[batch.count] = served.operation;
        batch.count += 1;
        self.metrics
            .completed(served.operation, served.status, served.transferred);
    }

    fn complete(
        &self,
        queue: &mut Queue,
        ring: &Ring<'_>,
        head: u16,
        written: u32,
        batch: &mut Batch,
    ) {
        put_used(queue, ring, u32::from(head), written);
        self.complete_swapped(queue, ring, batch);
    }

    /// Completes what was to be swapped with the request after it.
    fn complete_swapped(&self, queue: &mut Queue, ring: &Ring<'_>, batch: &mut Batch) {
        if let Some((head, served)) = batch.swapped.take() {
            put_used(queue, ring, u32::from(head), served.written);
        }
    }

    fn complete_faulty(
        &self,
        queue: &mut Queue,
        ring: &Ring<'_>,
        head: u16,
        served: Served,
        plan: &Plan,
        batch: &mut Batch,
    ) -> Result<(), RingError> {
        if plan.vanish {
            // No farewell to the front end, no flush, no clean-up: that is the point.
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
        }
        if plan.stop_queue {
            return Err(RingError::Injected);
        }
        if plan.drop {
            return Ok(());
        }
        let id = match plan.wrong_id {
            None => u32::from(head),
            Some(None) => u32::from(head ^ 1),
            Some(Some(id)) => id,
        };
        let written = match plan.wrong_length {
            None => served.written,
            Some(None) => served.written.wrapping_add(1),
            Some(Some(length)) => length,
        };
        if plan.swap && batch.swapped.is_none() && id == u32::from(head) {
            batch.swapped = Some((head, Served { written, ..served }));
            return Ok(());
        }
        for _ in 0..1 + u32::from(plan.twice) {
            put_used(queue, ring, id, written);
        }
        self.complete_swapped(queue, ring, batch);
        Ok(())
    }

    fn publish(&mut self, queue: &Queue, ring: &Ring<'_>, around: &mut impl Surroundings) {
        let new = queue.next_used();
        ring.publish(new);
        let wanted = match self.signalled {
            Some(old) if old == new => return,
            Some(old) => ring.wants_call(old, new),
            None => true,
        };
        self.signalled = Some(new);
        if wanted {
            self.metrics.calls.add(1);
            around.call();
        }
    }

    fn record(&self, batch: &Batch, begin: Instant) {
        if batch.count == 0 {
            return;
        }
        let time = nanoseconds(begin.elapsed());
        self.metrics.batches.record(batch.count as u64, 1);
        for run in batch.operations[..batch.count].chunk_by(|a, b| a == b) {
            let latency = &self.metrics.operation(run[0]).latency;
            latency.record(time, run.len() as u64);
        }
    }
}

fn put_used(queue: &mut Queue, ring: &Ring<'_>, id: u32, written: u32) {
    ring.write_used(queue.next_used(), id, written);
    queue.set_next_used(queue.next_used().wrapping_add(1));
}

fn check_memory() -> Result<(), RingError> {
    match bus_error::fault() {
        Some(_) => Err(RingError::MemoryVanished),
        None => Ok(()),
    }
}
