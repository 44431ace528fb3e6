//! What guest and harness say to each other.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port that the messages go over.
pub const PORT_NAME: &str = "vdma.agent";

/// Serial number of the disk that holds the guest's root file system.
pub const ROOT_SERIAL: &str = "vdma-root";

/// Begins the line in the kernel log that says why a guest cannot be brought up or go on.
pub const FATAL_PREFIX: &str = "vdma-agent: fatal: ";

/// Path of the encoded [`InitConfig`] in the initial file system.
pub const INIT_CONFIG: &str = "/init.config";

/// Directory of the initial file system that is laid over the guest's root file system.
pub const LAYER: &str = "/layer";

/// What the first process is told through a file in the initial file system.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct InitConfig {
    /// Name of the guest.
    pub hostname: String,
    /// Kernel modules that the root file system needs, in the order of loading.
    pub modules: Vec<String>,
    /// The driver's module, to be loaded once the root file system is there.
    pub driver: Option<String>,
    /// How many `/dev/vdmaN` have to appear.
    pub devices: u32,
}

/// Tells apart the commands of one guest.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct CommandId(pub u32);

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// A command to be run in the guest.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Command {
    /// The program and its arguments.
    pub arguments: Vec<String>,
    /// Environment variables beside the guest's own.
    pub environment: Vec<(String, String)>,
    /// Run it on a new terminal of this size; its standard error then goes to standard output.
    pub terminal: Option<WindowSize>,
}

/// Where output came from.
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
    /// It could not be started, and why; `missing` when there is no such program.
    NotStarted {
        /// Why, in one line.
        reason: String,
        /// The program does not exist.
        missing: bool,
    },
}

/// What a program in the guest can ask of the harness.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum HostCall {
    /// Read the memory of device number `device` as its backend sees it.
    ReadMemory {
        /// Number of the device, from 0.
        device: u32,
        /// First byte.
        offset: u64,
        /// Bytes, at most 1 MiB.
        length: u32,
    },
    /// Write to the memory of device number `device` behind the guest's back.
    WriteMemory {
        /// Number of the device, from 0.
        device: u32,
        /// First byte.
        offset: u64,
        /// What to write, at most 1 MiB.
        data: Vec<u8>,
    },
}

/// The answer to a [`HostCall`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum HostReply {
    /// Done; what was read, if anything.
    Done(Vec<u8>),
    /// Not done, and why.
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
    /// Bytes for a command's standard input; none stand for its end.
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
    /// Write a line to the kernel log, where it tells what came before from what comes after.
    Mark(String),
    /// Report what every process does, in the kernel log.
    Blocked,
    /// Have the kernel look for memory that nothing refers to; answer with [`ToHost::Leaks`].
    FindLeaks,
    /// Answer to [`ToHost::Call`].
    Reply {
        /// Number of the call.
        id: u32,
        /// The answer.
        reply: HostReply,
    },
    /// Answer with [`ToHost::Pong`].
    Ping,
    /// Switch the machine off.
    PowerOff,
}

/// From the guest to the harness.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum ToHost {
    /// The guest is up and takes commands.
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
    /// A command has taken this many bytes of input.
    InputTaken {
        /// Which command.
        id: CommandId,
        /// How many bytes.
        bytes: u32,
    },
    /// A command ended, and its output has been sent.
    Ended {
        /// Which command.
        id: CommandId,
        /// How it ended.
        end: CommandEnd,
    },
    /// What the kernel's leak detector found; empty when it found nothing or there is none.
    Leaks(String),
    /// A program in the guest asks something.
    Call {
        /// Number of the call.
        id: u32,
        /// What it asks.
        call: HostCall,
    },
    /// Answer to [`ToGuest::Ping`].
    Pong,
}
