//! The device's backend: one process for each device, on the host.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags},
};

use super::event::Event;
use crate::{
    failure::GuestFailure,
    host::{process, process::Process},
    vm::qemu::DeviceSpec,
};

/// Limit on the time until a backend listens.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Descriptor of the memory file in the backend.
const MEMORY_FD: i32 = 10;

/// How the backends of a guest are started.
#[derive(Clone, Debug)]
pub(crate) struct BackendSpec {
    /// The program.
    pub(crate) program: PathBuf,
    /// Further arguments.
    pub(crate) arguments: Vec<String>,
    /// Keep device memory where the harness can read and write it.
    pub(crate) visible_memory: bool,
    /// Offer `VIRTIO_F_ACCESS_PLATFORM`, so that the driver uses the DMA API.
    pub(crate) dma_api: bool,
}

impl BackendSpec {
    /// Returns what QEMU needs to know about device `number`.
    pub(crate) fn device(&self, number: u32) -> DeviceSpec {
        DeviceSpec {
            socket: socket_name(number),
            queues: self.number("--num-queues", 1),
            queue_size: self.number("--queue-size", 256),
            dma_api: self.dma_api,
        }
    }

    /// Parses the value of option `name`. The backend itself refuses an invalid one, before QEMU
    /// starts.
    fn number(&self, name: &str, default: u16) -> u16 {
        self.option(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    }

    /// Returns the last value of `name` among the arguments, given as `name=value` or as two
    /// arguments.
    fn option(&self, name: &str) -> Option<&str> {
        let mut found = None;
        for (index, argument) in self.arguments.iter().enumerate() {
            if let Some(rest) = argument.strip_prefix(name) {
                match rest.strip_prefix('=') {
                    Some(value) => found = Some(value),
                    None if rest.is_empty() => {
                        found = self.arguments.get(index + 1).map(String::as_str);
                    }
                    None => {}
                }
            }
        }
        found
    }
}

/// What is needed to plug a device in again.
pub(super) struct Replug {
    pub(super) spec: BackendSpec,
    pub(super) directory: PathBuf,
    pub(super) logs: PathBuf,
}

/// A running backend.
pub(crate) struct Backend {
    pub(crate) process: Process,
    memory: Option<File>,
    log: PathBuf,
    log_start: u64,
    number: u32,
}

impl Backend {
    /// Starts the backend of device `number` and waits until it listens in `directory`.
    pub(crate) fn start(
        spec: &BackendSpec,
        number: u32,
        directory: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let socket = directory.join(socket_name(number));
        // A killed backend leaves its socket behind.
        if socket.exists() {
            fs::remove_file(&socket)
                .with_context(|| format!("cannot remove {}", socket.display()))?;
        }
        let log = logs.join(format!("backend-{number}.log"));
        let output = process::open_log(&log)?;
        let log_start = fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let mut command = Command::new(&spec.program);
        command
            .arg("--socket-path")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot duplicate a file")?)
            .stderr(output);
        let memory = spec.visible_memory.then(memory_file).transpose()?;
        if let Some(file) = &memory {
            command.arg("--memory-file");
            command.arg(format!("/proc/self/fd/{MEMORY_FD}"));
            command
                .fd_mappings(vec![FdMapping {
                    parent_fd: file.try_clone().context("cannot duplicate a file")?.into(),
                    child_fd: MEMORY_FD,
                }])
                .context("cannot pass a descriptor to the backend")?;
        }
        if spec.dma_api {
            command.arg("--access-platform");
        }
        command.args(&spec.arguments);
        let mut backend = Self {
            process: Process::spawn(&mut command)?,
            memory,
            log,
            log_start,
            number,
        };
        backend.wait_until_listening(&socket)?;
        Ok(backend)
    }

    /// Describes why the backend has ended.
    pub(crate) fn failure(&mut self) -> Result<GuestFailure> {
        let status = self.process.wait()?;
        let text = process::tail(&self.log, self.log_start, 10);
        Ok(GuestFailure::BackendEnded {
            device: self.number,
            status: process::describe(status),
            detail: indented(&text),
        })
    }

    /// Reads device memory through the backend's memory file.
    pub(crate) fn read_memory(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; length];
        self.memory()?
            .read_exact_at(&mut data, offset)
            .with_context(|| format!("device memory at {offset}, {length} bytes"))?;
        Ok(data)
    }

    /// Writes device memory through the backend's memory file.
    pub(crate) fn write_memory(&self, offset: u64, data: &[u8]) -> Result<()> {
        let memory = self.memory()?;
        let size = memory
            .metadata()
            .context("cannot read the size of device memory")?
            .len();
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > size) {
            bail!(
                "device memory has {size} bytes; {} at {offset} do not fit",
                data.len()
            );
        }
        memory
            .write_all_at(data, offset)
            .with_context(|| format!("device memory at {offset}"))
    }

    fn memory(&self) -> Result<&File> {
        self.memory
            .as_ref()
            .context("device memory of this guest is not accessible to the harness")
    }

    fn wait_until_listening(&mut self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            // The backend listens before it renames the socket to this path.
            if socket.exists() {
                return Ok(());
            }
            if self.process.try_wait()?.is_some() {
                return Err(self.failure()?.into());
            }
            if Instant::now() >= deadline {
                bail!(
                    "the backend of device {} does not listen at {} after {} s; its log is {}",
                    self.number,
                    socket.display(),
                    START_DEADLINE.as_secs(),
                    self.log.display()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Reports the end of a backend's process.
pub(super) fn watch_backend(backend: &Backend, number: u32, events: Sender<Event>) -> Result<()> {
    let pid = i32::try_from(backend.process.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process without a number")?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .context("cannot watch the backend's process")?;
    std::thread::spawn(move || {
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        while let Err(rustix::io::Errno::INTR) = poll(&mut polled, None) {}
        // The receiver is gone once the run is over.
        let _ = events.send(Event::BackendEnded(number));
    });
    Ok(())
}

/// Name of device `number`'s socket in the run directory.
fn socket_name(number: u32) -> String {
    format!("backend-{number}.sock")
}

/// Creates a memory file, which exists only as long as it is open.
fn memory_file() -> Result<File> {
    let fd: OwnedFd = rustix::fs::memfd_create("vdma-memory", rustix::fs::MemfdFlags::CLOEXEC)
        .context("cannot create a memory file")?;
    Ok(File::from(fd))
}

/// Formats `text` as indented lines after a message; empty for an empty text.
pub(crate) fn indented(text: &str) -> String {
    let lines: String = text.lines().map(|line| format!("\n    {line}")).collect();
    if lines.is_empty() {
        lines
    } else {
        format!("; its output:{lines}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(arguments: &[&str]) -> BackendSpec {
        BackendSpec {
            program: PathBuf::from("/bin/false"),
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            visible_memory: false,
            dma_api: false,
        }
    }

    #[test]
    fn qemu_and_the_backend_agree_on_the_queues() {
        let device = spec(&["--num-queues", "4", "--queue-size=64"]).device(0);
        assert_eq!((device.queues, device.queue_size), (4, 64));
        let device = spec(&["--num-queues-x=3", "--num-queues=2", "--num-queues=8"]).device(0);
        assert_eq!((device.queues, device.queue_size), (8, 256));
    }

    #[test]
    fn a_backend_that_does_not_start_is_reported_with_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("backend");
        fs::write(&program, "#!/bin/sh\necho no memory >&2\nexit 3\n").unwrap();
        let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        fs::set_permissions(&program, mode).unwrap();
        let mut spec = spec(&[]);
        spec.program = program;
        let error = Backend::start(&spec, 2, dir.path(), dir.path())
            .map(|_| ())
            .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("device 2 ended (exit status 3)"), "{text}");
        assert!(text.ends_with("no memory"), "{text}");
    }
}
