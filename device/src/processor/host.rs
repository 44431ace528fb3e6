//! What a pass needs from the code that runs it.

use super::request::Completion;

/// What to do about an empty ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleAction {
    /// Poll the ring again at once.
    Spin,
    /// End the pass with notifications still disabled; another pass follows soon.
    Yield,
    /// Ask the driver for a kick and end the pass.
    EnableNotification,
}

/// The host of a queue: the thread that runs it, with its means of notification.
pub trait QueueHost {
    /// Notifies the driver of used entries.
    fn call(&mut self);

    /// Decides what to do about an empty ring.
    fn idle_action(&mut self) -> IdleAction {
        IdleAction::EnableNotification
    }

    /// Whether another thread wants the queue: the pass ends after the request in progress.
    fn is_interrupted(&self) -> bool {
        false
    }

    /// Learns that polling has found requests.
    fn poll_succeeded(&mut self) {}

    /// Learns that the request at `head` has been executed. Its completion may not be published
    /// yet.
    fn executed(&mut self, _head: u16, _completion: Completion) {}
}
