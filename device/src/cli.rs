//! The command line.

use std::{ffi::OsString, path::PathBuf, sync::Arc, time::Duration};

use clap::{ArgGroup, CommandFactory, Parser, error::ErrorKind};
use thiserror::Error;

use crate::{
    fault::{self, FaultSpec},
    memory::{Backing, DeviceMemory, MemoryError},
    sandbox::{SandboxSettings, SeccompMode},
    size::parse_size,
    vhost_user::{Device, DeviceSettings, ListenError, SocketListener},
    virtqueue::MAX_QUEUE_SIZE,
};

/// Most request queues of a device.
pub const MAX_QUEUES: u16 = 16;

/// Options that do not go together.
#[derive(Debug, Error, PartialEq, Eq)]
enum UsageError {
    #[error(
        "--threads {threads} exceeds the number of queues; choose at most --num-queues ({queues})"
    )]
    Threads { threads: u16, queues: u16 },
    #[error("--fault selects a queue= that does not exist; queues are 0 to {last}")]
    FaultQueue { last: u16 },
}

/// Why memory or sockets cannot be opened. Each message fits in one line.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Device memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The socket of a device.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The metrics socket.
    #[error("--metrics-socket: {0}")]
    Metrics(#[source] ListenError),
    /// Neither a path nor a descriptor was given.
    #[error("--socket-path or --fd is required")]
    NoSocket,
}

fn after_help() -> String {
    format!("{AFTER_HELP}\n\n{}", fault::HELP)
}

const AFTER_HELP: &str = "\
SIZE is a number with an optional suffix K, M, G or T (powers of 1024).

A QEMU (11.1 or later) command line for the defaults:
  qemu-system-x86_64 -M q35 -m 512M \\
    -object memory-backend-memfd,id=mem,size=512M,share=on -numa node,memdev=mem \\
    -chardev socket,id=c0,path=SOCKET \\
    -device vhost-user-test-device-pci,chardev=c0,virtio-id=37,num_vqs=1,vq_size=256,config_size=64
num_vqs and vq_size have to match --num-queues and --queue-size.";

/// vhost-user backend that emulates a DMA-capable virtio PCI device with BAR memory
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-device-dma", version, after_help = after_help(), max_term_width = 100)]
#[command(group(ArgGroup::new("socket").required(true).args(["socket_path", "fd"])))]
pub struct Args {
    /// Listen on this Unix socket, which appears once the device is ready
    #[arg(short, long, value_name = "PATH", help_heading = "Front end")]
    pub socket_path: Option<PathBuf>,

    /// Listen on this inherited file descriptor instead
    #[arg(long, value_name = "N", help_heading = "Front end")]
    pub fd: Option<i32>,

    /// Number of devices; with more than one, sockets are PATH0, PATH1, ...
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1, conflicts_with = "fd",
          value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Front end")]
    pub socket_count: u16,

    /// Print the backend's type and features as JSON and exit, ignoring all other options
    #[arg(long, exclusive = true, help_heading = "Front end")]
    pub print_capabilities: bool,

    /// Offer VIRTIO_F_ACCESS_PLATFORM, with which drivers use their DMA API (for QEMU's
    /// iommu_platform=on); addresses are not translated, so no IOMMU may be in between
    #[arg(long, help_heading = "Front end")]
    pub access_platform: bool,

    /// Exit after the first front end disconnects; with several devices, after each had one
    #[arg(long, help_heading = "Front end")]
    pub once: bool,

    /// Size of device memory, a multiple of 4096 [default: 64M, or the size of the memory file]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Device memory")]
    pub memory_size: Option<u64>,

    /// Back device memory with this file; with several devices, with PATH0, PATH1, ...
    #[arg(long, value_name = "PATH", help_heading = "Device memory")]
    pub memory_file: Option<PathBuf>,

    /// Let other processes use the memory file at the same time; several devices all use PATH
    /// itself
    #[arg(long, requires = "memory_file", help_heading = "Device memory")]
    pub share: bool,

    /// Leave holes in the memory file instead of allocating all of it at the start; a page that a
    /// full file system cannot provide later fails requests, or ends a front end that stores to it
    #[arg(long, requires = "memory_file", help_heading = "Device memory")]
    pub sparse: bool,

    /// Back device memory with huge pages of the system's default size
    #[arg(long, conflicts_with = "memory_file", help_heading = "Device memory")]
    pub hugepages: bool,

    /// Zero device memory when a front end disconnects; by default the next one finds what the last
    /// one left
    #[arg(long, conflicts_with = "memory_file", help_heading = "Device memory")]
    pub scrub: bool,

    /// Number of request queues
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)),
          help_heading = "Queues")]
    pub num_queues: u16,

    /// Largest size of each queue, a power of two up to 1024
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse_queue_size,
          help_heading = "Queues")]
    pub queue_size: u16,

    /// Number of threads that run the queues of a device, at most one per queue [default: one per
    /// queue]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)),
          help_heading = "Queues")]
    pub threads: Option<u16>,

    /// Maximum time in microseconds to busy-poll an idle queue before sleeping (adaptive; 0
    /// disables)
    #[arg(long, value_name = "N", default_value_t = 32,
          value_parser = clap::value_parser!(u64).range(0..=1_000_000), help_heading = "Queues")]
    pub poll_us: u64,

    /// Inject a fault (repeatable; see below)
    #[arg(long = "fault", value_name = "FAULT", help_heading = "Faults")]
    pub faults: Vec<FaultSpec>,

    /// What to do on unexpected system calls: none (no filter), log (allow them and log them to the
    /// kernel log), kill (kill the backend)
    #[arg(
        long,
        value_name = "MODE",
        default_value = "kill",
        help_heading = "Sandbox"
    )]
    pub seccomp: SeccompMode,

    /// Do not restrict access to the file system
    #[arg(long, help_heading = "Sandbox")]
    pub no_landlock: bool,

    /// Serve metrics in the Prometheus text format on this Unix socket (curl --unix-socket PATH
    /// http://localhost/metrics)
    #[arg(long, value_name = "PATH", help_heading = "Observation")]
    pub metrics_socket: Option<PathBuf>,

    /// Log messages of this level and above: error, warn, info, debug, trace or off;
    /// "info,MODULE=debug" sets another level for a module [default: RUST_LOG, or info]
    #[arg(
        long,
        value_name = "LEVEL",
        value_parser = parse_log_level,
        help_heading = "Observation"
    )]
    log_level: Option<String>,
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    text.parse::<u16>()
        .ok()
        .filter(|size| (2..=MAX_QUEUE_SIZE).contains(size) && size.is_power_of_two())
        .ok_or_else(|| format!("'{text}' is not a power of two from 2 to {MAX_QUEUE_SIZE}"))
}

/// Checks a list of `LEVEL` and `MODULE=LEVEL`. `env_logger` would take a misspelt level for the
/// name of a module, and log nothing.
fn parse_log_level(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let level = part.split_once('=').map_or(part, |(_, level)| level);
        level.trim().parse::<log::LevelFilter>().map_err(|_| {
            format!("'{level}' is not a log level; write error, warn, info, debug, trace or off")
        })?;
    }
    Ok(text.to_owned())
}

/// Whether `part` of `RUST_LOG` is `LEVEL` or `MODULE=LEVEL`.
fn is_log_filter(part: &str) -> bool {
    parse_log_level(part).is_ok()
}

fn numbered(path: &std::path::Path, index: u16) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(index.to_string());
    PathBuf::from(name)
}

impl Args {
    /// Parses the command line. Exits the process if it is invalid, or only asks for help or the
    /// version.
    #[must_use]
    pub fn read() -> Self {
        let args = Self::parse();
        if let Err(e) = args.check() {
            Self::command().error(ErrorKind::ValueValidation, e).exit();
        }
        args
    }

    /// The log filter. `RUST_LOG` is shared with other programs and may be empty or name what does
    /// not exist here: its parts apply as far as they are understood.
    #[must_use]
    pub fn log_filter(&self) -> String {
        if let Some(level) = &self.log_level {
            return level.clone();
        }
        let variable = std::env::var("RUST_LOG").unwrap_or_default();
        // Without a level of its own this crate logs as by default, whatever the others do.
        std::iter::once("info")
            .chain(variable.split(',').filter(|part| is_log_filter(part)))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Checks conditions that involve several options.
    fn check(&self) -> Result<(), UsageError> {
        let queues = self.num_queues;
        if let Some(threads) = self.threads.filter(|&threads| threads > queues) {
            return Err(UsageError::Threads { threads, queues });
        }
        for fault in &self.faults {
            if !(0..queues).any(|queue| fault.on_queue(queue)) {
                return Err(UsageError::FaultQueue { last: queues - 1 });
            }
        }
        Ok(())
    }

    /// Opens memory and sockets of every device. Sockets are opened last, so that they appear only
    /// when everything is ready.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub fn open(&self) -> Result<Vec<(Arc<Device>, SocketListener)>, OpenError> {
        let mut devices = Vec::with_capacity(usize::from(self.socket_count));
        for index in 0..self.socket_count {
            let memory = DeviceMemory::open(self.backing(index), self.memory_size)?;
            let settings = DeviceSettings {
                num_queues: self.num_queues,
                queue_size: self.queue_size,
                threads: self.threads.unwrap_or(self.num_queues),
                once: self.once,
                scrub: self.scrub,
                access_platform: self.access_platform,
                poll: Duration::from_micros(self.poll_us),
                seccomp: self.seccomp,
                faults: self.faults.clone(),
            };
            let name = format!("device {index}");
            devices.push(Arc::new(Device::new(name, settings, Arc::new(memory))));
        }
        devices
            .into_iter()
            .zip(0..)
            .map(|(device, index)| Ok((device, self.listener(index)?)))
            .collect()
    }

    /// The output of `--print-capabilities`: QEMU's "VHostUserBackendCapabilities", with our own
    /// type, since its list has none that fits.
    #[must_use]
    pub const fn capabilities() -> &'static str {
        "{\n  \"type\": \"dma\",\n  \"features\": []\n}"
    }

    /// Opens the metrics socket, if one was requested.
    ///
    /// # Errors
    ///
    /// [`OpenError::Metrics`].
    pub fn open_metrics(&self) -> Result<Option<SocketListener>, OpenError> {
        let path = self.metrics_socket.as_deref();
        path.map(SocketListener::bind)
            .transpose()
            .map_err(OpenError::Metrics)
    }

    /// The settings of the sandbox.
    #[must_use]
    pub fn sandbox(&self) -> SandboxSettings {
        let directory = |path: &PathBuf| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let sockets = [&self.socket_path, &self.metrics_socket];
        SandboxSettings {
            seccomp: self.seccomp,
            no_landlock: self.no_landlock,
            socket_directories: sockets.into_iter().flatten().map(directory).collect(),
        }
    }

    fn backing(&self, index: u16) -> Backing {
        let Some(path) = &self.memory_file else {
            return match self.hugepages {
                true => Backing::HugePages,
                false => Backing::Memfd,
            };
        };
        let path = match self.socket_count > 1 && !self.share {
            true => numbered(path, index),
            false => path.clone(),
        };
        Backing::File {
            path,
            share: self.share,
            sparse: self.sparse,
        }
    }

    fn listener(&self, index: u16) -> Result<SocketListener, OpenError> {
        if let Some(path) = &self.socket_path {
            let path = if self.socket_count > 1 {
                numbered(path, index)
            } else {
                path.clone()
            };
            return Ok(SocketListener::bind(&path)?);
        }
        let number = self.fd.ok_or(OpenError::NoSocket)?;
        Ok(SocketListener::inherited(number)?)
    }
}
