//! Everything that can happen to a running guest, as one type; all sources send into one channel.

use guest_agent::{ToHost, WindowSize};
use serde_json::Value;

/// An event of a running guest.
#[derive(Debug)]
pub(crate) enum Event {
    /// The kernel panicked.
    Panic(String),
    /// The guest's first process cannot continue.
    Fatal(String),
    /// A mark appeared in the kernel log.
    Mark(String),
    /// The console ended, and QEMU with it.
    ConsoleClosed,
    /// QEMU stopped the guest without being asked to.
    Stopped,
    /// The guest is suspended; only QEMU can wake it.
    Asleep,
    /// QEMU replied to a command, with a result or an error message.
    QmpReply {
        /// Number of the command.
        number: u64,
        /// The reply.
        result: Result<Value, String>,
    },
    /// The guest has released this device, and QEMU has removed it.
    Unplugged(String),
    /// The agent sent a message.
    Agent(ToHost),
    /// The agent's connection ended.
    AgentClosed(String),
    /// The backend of this device ended.
    BackendEnded(u32),
    /// Input for the running command; an empty one is the end of input.
    Input(Vec<u8>),
    /// The user's terminal has a new size.
    Resized(WindowSize),
    /// A command in the background printed something or ended.
    Background,
    /// A signal arrived.
    Interrupted,
}
