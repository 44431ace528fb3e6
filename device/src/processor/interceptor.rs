//! The points of a request's life at which something else may be made to happen.

use std::time::Instant;

use super::{
    error::PassError,
    request::{Completion, Request},
};
use crate::{engine::Engine, virtqueue::ActiveQueue};

/// What happens to the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<P> {
    /// It is executed and completed according to a plan.
    Execute(P),
    /// It stays available, as do all behind it, at least until then.
    HoldUntil(Instant),
}

/// Changes what happens to the requests of one queue. Calls are dispatched statically, so that
/// [`PassThrough`] leaves nothing in the loop of a queue without faults.
pub trait Interceptor {
    /// What was decided about one request.
    type Plan;

    /// Decides about the request at `index` of the available ring. A request that is held is
    /// decided about again at the next pass.
    fn plan(&mut self, request: &Request<'_, '_>, index: u16) -> Decision<Self::Plan>;

    /// Executes a request and writes its response.
    fn execute(
        &mut self,
        request: &Request<'_, '_>,
        engine: &mut Engine,
        plan: &Self::Plan,
    ) -> Completion;

    /// Adds the used entries for an executed request.
    ///
    /// # Errors
    ///
    /// The queue stops.
    fn complete(
        &mut self,
        queue: &mut ActiveQueue<'_, '_>,
        head: u16,
        completion: Completion,
        plan: &Self::Plan,
    ) -> Result<(), PassError>;

    /// Adds used entries that were deferred, before the batch is published.
    fn end_batch(&mut self, queue: &mut ActiveQueue<'_, '_>);

    /// Forgets about requests of the ring before it was reconfigured.
    fn reset(&mut self);
}

/// Executes and completes each request as the driver expects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassThrough;

impl Interceptor for PassThrough {
    type Plan = ();

    #[inline]
    fn plan(&mut self, _request: &Request<'_, '_>, _index: u16) -> Decision<()> {
        Decision::Execute(())
    }

    #[inline]
    fn execute(
        &mut self,
        request: &Request<'_, '_>,
        engine: &mut Engine,
        (): &Self::Plan,
    ) -> Completion {
        request.execute(engine)
    }

    #[inline]
    fn complete(
        &mut self,
        queue: &mut ActiveQueue<'_, '_>,
        head: u16,
        completion: Completion,
        (): &Self::Plan,
    ) -> Result<(), PassError> {
        queue.add_used(u32::from(head), completion.written);
        Ok(())
    }

    #[inline]
    fn end_batch(&mut self, _queue: &mut ActiveQueue<'_, '_>) {}

    #[inline]
    fn reset(&mut self) {}
}
