//! The messages between guest and harness.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port that carries the messages.
pub const PORT_NAME: &str = "vdma.agent";

/// Serial number of the disk that holds the guest's root file system.
pub const ROOT_SERIAL: &str = "vdma-root";

/// Prefix of the line in the kernel log that says why a guest cannot boot or continue.
pub const FATAL_PREFIX: &str = "vdma-agent: fatal: ";

/// Path of the encoded [`InitConfig`] in the initial file system.
pub const INIT_CONFIG: &str = "/init.config";

/// Directory of the initial file system that becomes an overlay on the guest's root file system.
pub const LAYER: &str = "/layer";

/// Configuration of the first process, a file in the initial file system.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct InitConfig {
    /// Name of the guest.
    pub hostname: String,
    /// Kernel modules that the root file system needs, in the order of loading.
    pub modules: Vec<String>,
    /// The driver's module, to be loaded once the root file system is mounted.
    pub driver: Option<String>,
    /// Number of nodes `/dev/vdmaN` that have to appear.
    pub devices: u32,
}

/// Identifies a command of one guest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct CommandId(pub u32);

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct WindowSize {
    /// Number of lines.
    pub rows: u16,
    /// Number of characters per line.
    pub columns: u16,
}

/// A command to be run in the guest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Command {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Environment variables in addition to the guest's own.
    pub environment: Vec<(String, String)>,
    /// Run it on a new terminal of this size; its standard error then goes to standard output.
    pub terminal: Option<WindowSize>,
}

/// Source of output.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum CommandEnd {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
    /// It could not be started.
    NotStarted {
        /// Reason, in one line.
        reason: String,
        /// The program does not exist.
        missing: bool,
    },
}

/// A call of a program in the guest to the harness.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum HostCall {
    /// Read the memory of device number `device` as its backend sees it.
    ReadMemory {
        /// Number of the device, from 0.
        device: u32,
        /// First byte.
        offset: u64,
        /// Number of bytes, at most 1 MiB.
        length: u32,
    },
    /// Write to the memory of device number `device` without the guest's involvement.
    WriteMemory {
        /// Number of the device, from 0.
        device: u32,
        /// First byte.
        offset: u64,
        /// The bytes to write, at most 1 MiB.
        data: Vec<u8>,
    },
}

/// The reply to a [`HostCall`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum HostReply {
    /// Done, with the bytes that were read, if any.
    Done(Vec<u8>),
    /// Refused, with a reason.
    Refused(String),
}

/// From the harness to the guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum ToGuest {
    /// Run a command.
    Run {
        /// Its number, not used before.
        id: CommandId,
        /// What to run.
        command: Command,
    },
    /// Bytes for a command's standard input; an empty vector is its end.
    Input {
        /// Which command.
        id: CommandId,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A command's terminal has a new size.
    Resize {
        /// Which command.
        id: CommandId,
        /// The new size.
        size: WindowSize,
    },
    /// Send a signal to a command's process group.
    Signal {
        /// Which command.
        id: CommandId,
        /// Signal number.
        signal: i32,
    },
    /// Write a line to the kernel log, to separate earlier messages from later ones.
    Mark(String),
    /// Print the stacks of blocked tasks to the kernel log.
    ShowBlockedTasks,
    /// Run the kernel's leak detector and reply with [`ToHost::Leaks`].
    FindLeaks,
    /// Reply to [`ToHost::Call`].
    Reply {
        /// Number of the call.
        id: u32,
        /// The reply.
        reply: HostReply,
    },
    /// Reply with [`ToHost::Pong`].
    Ping,
    /// Power the machine off.
    PowerOff,
}

/// From the guest to the harness.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum ToHost {
    /// The guest is up and accepts commands.
    Ready {
        /// The kernel's release.
        kernel: String,
    },
    /// A command's output.
    Output {
        /// Which command.
        id: CommandId,
        /// Which stream.
        stream: Stream,
        /// The bytes.
        data: Vec<u8>,
    },
    /// A command has read input.
    InputTaken {
        /// Which command.
        id: CommandId,
        /// Number of bytes.
        bytes: u32,
    },
    /// A command ended, and its output has been sent.
    Ended {
        /// Which command.
        id: CommandId,
        /// How it ended.
        end: CommandEnd,
    },
    /// Report of the kernel's leak detector; empty if it found nothing or does not exist.
    Leaks(String),
    /// A program in the guest calls the harness.
    Call {
        /// Number of the call.
        id: u32,
        /// The call.
        call: HostCall,
    },
    /// Reply to [`ToGuest::Ping`].
    Pong,
}
