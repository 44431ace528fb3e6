//! The guest's serial console: logged to a file and scanned as it arrives.

use std::{
    collections::VecDeque,
    fs::File,
    io::{ErrorKind, Read, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    host::progress,
    vm::{
        event::Event,
        kernel_log::{Finding, Scanner, Splat},
    },
};

/// Number of lines kept for reports: enough for a panic with its backtrace.
const KEPT_LINES: usize = 60;

/// Limit on the time until QEMU's descriptors are closed after its sandbox has ended.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// A console and its reader.
pub(crate) struct Console {
    state: Arc<Mutex<State>>,
    log: PathBuf,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    scanner: Scanner,
    last_lines: VecDeque<String>,
}

impl Console {
    /// Starts a thread that reads `source` to its end and sends findings to `events`.
    pub(crate) fn watch(
        mut source: impl Read + Send + 'static,
        log: &Path,
        show: bool,
        events: Sender<Event>,
    ) -> Result<Self> {
        let mut file =
            File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = Arc::clone(&state);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match source.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                if let Err(error) = file.write_all(&buffer[..count]) {
                    progress::say(&format!("vdma: cannot write the console log: {error}"));
                }
                let mut found = Vec::new();
                {
                    let mut state = lock(&shared);
                    let State {
                        scanner,
                        last_lines,
                    } = &mut *state;
                    scanner.feed(&buffer[..count], |line, finding| {
                        if show {
                            progress::say(line);
                        }
                        if last_lines.len() == KEPT_LINES {
                            last_lines.pop_front();
                        }
                        last_lines.push_back(line.to_owned());
                        found.extend(finding);
                    });
                }
                for finding in found {
                    let event = match finding {
                        Finding::Panic(reason) => Event::Panic(reason),
                        Finding::Fatal(reason) => Event::Fatal(reason),
                        Finding::Mark(mark) => Event::Mark(mark),
                    };
                    // The receiver is gone once the run is over.
                    let _ = events.send(event);
                }
            }
            let _ = events.send(Event::ConsoleClosed);
        });
        Ok(Self {
            state,
            log: log.to_owned(),
            reader,
        })
    }

    /// Waits until the last writer has closed the console: QEMU itself has ended then, and not only
    /// its sandbox.
    pub(crate) fn wait_until_closed(&self) {
        let deadline = Instant::now() + CLOSE_DEADLINE;
        while !self.reader.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The splats since the last call.
    pub(crate) fn take_splats(&self) -> Vec<Splat> {
        lock(&self.state).scanner.take_splats()
    }

    /// The last lines, oldest first.
    pub(crate) fn last_lines(&self) -> Vec<String> {
        lock(&self.state).last_lines.iter().cloned().collect()
    }

    /// Path of the complete log.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
