//! One pass over a queue: execute what is available, publish and notify in batches.

use std::{sync::Arc, time::Instant};

use vdma_protocol::Response;
use virtio_queue::Queue;

use super::{
    batch::{Batch, is_long},
    error::PassError,
    host::QueueHost,
    idle::{self, Idle},
    interceptor::{Decision, Interceptor},
    request::Request,
};
use crate::{
    engine::Engine,
    metrics::QueueMetrics,
    sigbus,
    virtqueue::{ActiveQueue, Chain, GuestView, Scratch},
};

/// Batches of one pass. The lock on the queue is released in between passes.
const PASS_BATCHES: usize = 8;

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Nothing is available, and the driver will kick when that changes.
    AwaitKick,
    /// More may be available: make another pass.
    Continue,
    /// Nothing is available, and the driver will not kick ([`IdleAction::Yield`]): make another
    /// pass soon.
    ///
    /// [`IdleAction::Yield`]: super::IdleAction::Yield
    Yielded,
    /// The interceptor holds the next request until then.
    HeldUntil(Instant),
}

/// Executes the requests of one queue.
#[derive(Debug)]
pub struct Processor<I> {
    engine: Engine,
    metrics: Arc<QueueMetrics>,
    pub(super) interceptor: I,
    scratch: Option<Scratch>,
    /// The last pass ended with [`Pass::Yielded`].
    yielded: bool,
    /// Used index at the last decision whether to call; `None` before the first one since the ring
    /// was configured, which then calls unconditionally.
    pub(super) signalled_used: Option<u16>,
}

impl<I: Interceptor> Processor<I> {
    /// A processor that executes with `engine`, counts in `metrics`, and lets `interceptor` change
    /// what happens to requests.
    #[must_use]
    pub fn new(engine: Engine, metrics: Arc<QueueMetrics>, interceptor: I) -> Self {
        Self {
            engine,
            metrics,
            interceptor,
            scratch: None,
            yielded: false,
            signalled_used: None,
        }
    }

    /// Forgets what was known of the ring, which has been reconfigured.
    pub fn reset(&mut self) {
        self.signalled_used = None;
        self.yielded = false;
        self.interceptor.reset();
    }

    /// Makes a pass over `queue`.
    ///
    /// # Errors
    ///
    /// The queue has to stop. What was executed before is published.
    pub fn pass(
        &mut self,
        queue: &mut Queue,
        view: &GuestView,
        host: &mut impl QueueHost,
    ) -> Result<Pass, PassError> {
        let mut queue = ActiveQueue::new(queue, view)?;
        let scratch = self.scratch.take().unwrap_or_default();
        let mut chain = Chain::new(scratch, Response::SIZE as u64);
        let result = sigbus::guarded(view.watched(), || {
            if queue.is_lost() {
                return Err(PassError::GuestMemory);
            }
            let result = self.run(&mut queue, &mut chain, host);
            // What was read or written since the fault cannot be trusted.
            if queue.is_lost() {
                return Err(PassError::GuestMemory);
            }
            result
        });
        self.scratch = Some(chain.into_scratch());
        self.metrics.ring_errors.add(u64::from(result.is_err()));
        result
    }

    /// Alternates between batches and waiting for requests, within the bounds of one pass.
    fn run<'m>(
        &mut self,
        queue: &mut ActiveQueue<'_, 'm>,
        chain: &mut Chain<'m>,
        host: &mut impl QueueHost,
    ) -> Result<Pass, PassError> {
        if std::mem::take(&mut self.yielded) {
            idle::check(queue, host, &self.metrics)?;
        }
        for _ in 0..PASS_BATCHES {
            let available = queue.available()?;
            if available == 0 {
                match idle::wait(queue, host, &self.metrics)? {
                    Idle::Requests => {}
                    Idle::AwaitKick => return Ok(Pass::AwaitKick),
                    Idle::Yielded => {
                        self.yielded = true;
                        return Ok(Pass::Yielded);
                    }
                }
            } else if let Some(until) = self.batch(queue, available, chain, host)? {
                return Ok(Pass::HeldUntil(until));
            }
            if host.is_interrupted() {
                break;
            }
        }
        Ok(Pass::Continue)
    }

    /// Executes, completes and publishes one batch; returns until when the next request is held, if
    /// it is. Completions are published on errors as well.
    fn batch<'m>(
        &mut self,
        queue: &mut ActiveQueue<'_, 'm>,
        available: u16,
        chain: &mut Chain<'m>,
        host: &mut impl QueueHost,
    ) -> Result<Option<Instant>, PassError> {
        queue.disable_notification();
        let mut batch = Batch::begin();
        let result = self.execute(queue, available, chain, host, &mut batch);
        self.end(queue, host, &batch);
        result
    }

    /// Publishes the completions of `batch`.
    fn end(&mut self, queue: &mut ActiveQueue<'_, '_>, host: &mut impl QueueHost, batch: &Batch) {
        self.interceptor.end_batch(queue);
        // Before the driver sees the completions: it may read the counters next.
        batch.record(&self.metrics);
        self.publish(queue, host);
    }

    /// Executes and completes up to `available` requests. They are published by the caller, except
    /// for those before a long one.
    fn execute<'m>(
        &mut self,
        queue: &mut ActiveQueue<'_, 'm>,
        available: u16,
        chain: &mut Chain<'m>,
        host: &mut impl QueueHost,
        batch: &mut Batch,
    ) -> Result<Option<Instant>, PassError> {
        for _ in 0..available {
            if batch.is_full() || host.is_interrupted() {
                break;
            }
            let head = queue.peek(chain)?;
            if queue.is_lost() {
                // The chain may be one of before.
                return Err(PassError::GuestMemory);
            }
            let request = Request::new(chain);
            let plan = match self.interceptor.plan(&request, queue.next_avail()) {
                Decision::Execute(plan) => plan,
                Decision::HoldUntil(until) => return Ok(Some(until)),
            };
            if request.header().is_some_and(is_long) {
                if !batch.is_empty() {
                    self.end(queue, host, batch);
                    *batch = Batch::begin();
                }
                batch.end_after_long();
            }
            let completion = self.interceptor.execute(&request, &mut self.engine, &plan);
            queue.advance();
            batch.add(&completion);
            self.metrics.completed(
                completion.operation,
                completion.status,
                completion.transferred,
            );
            if queue.is_lost() {
                return Err(PassError::GuestMemory);
            }
            self.interceptor.complete(queue, head, completion, &plan)?;
            host.executed(head, completion);
        }
        Ok(None)
    }

    /// Publishes used entries and notifies the driver if it asks for that.
    fn publish(&mut self, queue: &ActiveQueue<'_, '_>, host: &mut impl QueueHost) {
        let next_used = queue.next_used();
        queue.publish_used();
        let wanted = match self.signalled_used {
            Some(old) if old == next_used => return,
            Some(old) => queue.needs_notification(old),
            None => true,
        };
        self.signalled_used = Some(next_used);
        if wanted {
            self.metrics.calls.add(1);
            host.call();
        }
    }
}
