//! An empty ring: polling it, yielding, or waiting for a kick.

use super::host::{IdleAction, QueueHost};
use crate::{
    metrics::QueueMetrics,
    virtqueue::{ActiveQueue, RingError},
};

/// How waiting on an empty ring ended.
pub(super) enum Idle {
    /// Requests are available.
    Requests,
    /// The host wants the thread back; notifications stay disabled.
    Yielded,
    /// The driver will kick.
    AwaitKick,
}

/// Waits on an empty ring as `host` says.
pub(super) fn wait(
    queue: &ActiveQueue<'_, '_>,
    host: &mut impl QueueHost,
    metrics: &QueueMetrics,
) -> Result<Idle, RingError> {
    loop {
        match host.idle_action() {
            IdleAction::Spin => std::hint::spin_loop(),
            IdleAction::Yield => return Ok(Idle::Yielded),
            IdleAction::EnableNotification => {
                return Ok(if queue.enable_notification()? {
                    Idle::Requests
                } else {
                    Idle::AwaitKick
                });
            }
        }
        if check(queue, host, metrics)? {
            return Ok(Idle::Requests);
        }
    }
}

/// Polls the ring once; whether requests are available. They count as found without a kick.
pub(super) fn check(
    queue: &ActiveQueue<'_, '_>,
    host: &mut impl QueueHost,
    metrics: &QueueMetrics,
) -> Result<bool, RingError> {
    let available = queue.available()?;
    if available > 0 {
        host.poll_succeeded();
        metrics.poll_hits.add(u64::from(available));
    }
    Ok(available > 0)
}
