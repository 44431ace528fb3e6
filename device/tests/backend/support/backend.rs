//! The backend as a child process.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use super::deadline::DEADLINE;

/// A running backend and its directory; dropping it ends both.
pub struct Backend {
    child: Child,
    directory: tempfile::TempDir,
    so_far: Arc<Mutex<Vec<u8>>>,
    log: Option<std::thread::JoinHandle<String>>,
}

impl Backend {
    /// Starts the backend with a socket in a fresh directory and waits until it listens.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    /// The same in an existing directory.
    pub fn start_in(directory: tempfile::TempDir, arguments: &[&str]) -> Self {
        let socket = directory.path().join("vdma.sock");
        let mut command = Self::command();
        command.arg("--socket-path").arg(&socket).args(arguments);
        let mut backend = Self::spawn(command, directory);
        backend.await_file(&socket);
        backend
    }

    /// The same with a metrics socket, whose path is returned.
    pub fn start_with_metrics(arguments: &[&str]) -> (Self, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let metrics = directory.path().join("metrics");
        let mut arguments = arguments.to_vec();
        arguments.extend(["--metrics-socket", metrics.to_str().unwrap()]);
        (Self::start_in(directory, &arguments), metrics)
    }

    /// The command, without arguments.
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-dma"));
        command.env("RUST_BACKTRACE", "0").env_remove("RUST_LOG");
        command
    }

    /// Starts a prepared command.
    pub fn spawn(mut command: Command, directory: tempfile::TempDir) -> Self {
        if !is_sandboxed() {
            command.args(["--seccomp=none", "--no-landlock"]);
        }
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let so_far = Arc::new(Mutex::new(Vec::new()));
        let text = Arc::clone(&so_far);
        let log = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                text.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
            String::from_utf8_lossy(&text.lock().unwrap()).into_owned()
        });
        Self {
            child,
            directory,
            so_far,
            log: Some(log),
        }
    }

    fn log_so_far(&self) -> String {
        String::from_utf8_lossy(&self.so_far.lock().unwrap()).into_owned()
    }

    /// Waits until the backend has logged `text`.
    pub fn await_log(&self, text: &str) {
        let begin = Instant::now();
        loop {
            let log = self.log_so_far();
            if log.contains(text) {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "no \"{text}\" in {log}");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    pub fn await_file(&mut self, path: &Path) {
        let begin = Instant::now();
        while !path.exists() {
            assert!(
                self.is_running(),
                "the backend has exited: {}",
                self.log_so_far()
            );
            assert!(
                begin.elapsed() < DEADLINE,
                "{} did not appear",
                path.display()
            );
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vdma.sock")
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Names of its threads, except for those that end meanwhile.
    pub fn thread_names(&self) -> Vec<String> {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        std::fs::read_dir(tasks)
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the backend to exit by itself; returns its status and its log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < DEADLINE, "the backend does not exit");
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        let log = self.log.take().unwrap().join().unwrap();
        (status, log)
    }

    /// Ends the backend with SIGTERM, upon which it has to exit successfully; returns its log.
    pub fn end(self) -> String {
        self.signal(rustix::process::Signal::TERM);
        let (status, log) = self.wait();
        assert!(status.success(), "{status}: {log}");
        log
    }
}

/// Whether backends run in their sandbox. `VDMA_TEST_SANDBOX=off` disables it for tools that need
/// more: sanitizers create mappings, coverage is written to files at exit.
pub fn is_sandboxed() -> bool {
    std::env::var_os("VDMA_TEST_SANDBOX").is_none_or(|value| value != "off")
}

impl Drop for Backend {
    fn drop(&mut self) {
        let begin = Instant::now();
        // Once it has been waited for, its pid may be another process's.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(self.pid(), rustix::process::Signal::TERM);
        }
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < DEADLINE {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let _ = self.child.kill();
        let status = self.child.wait();
        if let Some(log) = self.log.take() {
            // Shown by the test harness when the test fails.
            eprint!("{}", log.join().unwrap());
            // The test has not checked the status, which also tells of a sanitizer's report.
            let succeeded = status.is_ok_and(|status| status.success());
            assert!(succeeded || std::thread::panicking(), "the backend failed");
        }
    }
}
