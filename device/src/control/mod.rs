//! The control loop of the main thread: signals, the metrics socket, and the end of servers.

mod event_loop;
mod metrics_socket;
mod signals;

pub use self::event_loop::{ControlError, Signals, run};
