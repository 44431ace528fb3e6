//! Everything that can happen to a running guest, as one type: its sources send it into one channel.

use guest_agent::{ToHost, WindowSize};
use serde_json::Value;

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The kernel panicked.
    Panic(String),
    /// The guest's first process gives up.
    Fatal(String),
    /// A mark came by in the kernel log.
    Mark(String),
    /// The console ended, and QEMU with it.
    ConsoleClosed,
    /// QEMU stopped the guest of its own accord.
    Stopped,
    /// The guest sleeps, and only QEMU can wake it.
    Asleep,
    /// QEMU's answer to a command: what it returns, or why it refuses.
    Answer {
        /// Number of the command.
        number: u64,
        /// The answer.
        result: Result<Value, String>,
    },
    /// QEMU has taken this device away, with the guest's consent.
    Unplugged(String),
    /// The agent says something.
    Agent(ToHost),
    /// The agent's connection ended.
    AgentClosed(String),
    /// The backend of this device ended.
    BackendEnded(u32),
    /// Input for the running command; none stands for its end.
    Input(Vec<u8>),
    /// The user's terminal has a new size.
    Resized(WindowSize),
    /// A command in the background said something, or ended.
    Background,
    /// A signal arrived.
    Interrupted,
}
