//! Log lines on their way to standard error.
//!
//! The reader of standard error may stop: a terminal that is stopped, a full pipe. Once the thread
//! of this module runs, no other thread writes there. Lines wait for it in a bounded queue, and are
//! dropped and counted when that is full. Lines that recur are limited by the statement that logs
//! them, so that neither guests nor front ends decide how long the log is.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use env_logger::{Logger, Target, WriteStyle};
use log::{Level, Log, Metadata, Record};

use crate::{
    lock::lock,
    log_limit::LogLimit,
    sandbox::{Role, SeccompMode, confine_thread},
};

/// Lines that may wait.
const QUEUE: usize = 1024;

/// Lines of one statement in a period of [`LogLimit`]. At start-up there is one for each of up to
/// 64 devices.
const BURST: u32 = 100;

enum Message {
    Bytes(Vec<u8>),
    /// Everything before it has been written once this sender is dropped.
    Flush(SyncSender<()>),
}

static SENDER: OnceLock<SyncSender<Message>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Installs the logger. Lines are written directly until [`start`].
pub fn install(filter: &str) {
    let style = match io::stderr().is_terminal() {
        true => WriteStyle::Always,
        false => WriteStyle::Never,
    };
    let logger = env_logger::Builder::new()
        .parse_filters(filter)
        .target(Target::Pipe(Box::new(Output)))
        .write_style(style)
        .build();
    let level = logger.filter();
    let limited = LimitedLogger {
        logger,
        statements: Mutex::default(),
    };
    // Fails only if there is a logger already.
    if log::set_boxed_logger(Box::new(limited)).is_ok() {
        log::set_max_level(level);
    }
}

/// Starts the thread that writes. It inherits the sandbox of the calling thread.
///
/// # Errors
///
/// The thread cannot be started.
pub fn start(seccomp: SeccompMode) -> io::Result<()> {
    let (sender, receiver) = mpsc::sync_channel(QUEUE);
    let thread = thread::Builder::new().name("log".to_owned());
    thread.spawn(move || {
        if let Err(e) = confine_thread(Role::Log, seccomp) {
            log::error!("{e}");
        }
        write_all(&receiver);
    })?;
    // Fails only if it is called twice.
    let _ = SENDER.set(sender);
    Ok(())
}

/// Writes `line` whatever the log level is.
pub fn print(line: &str) {
    submit(format!("{line}\n").into_bytes());
}

/// Waits until all lines have been written, but not longer than `limit`.
pub fn flush(limit: Duration) {
    let Some(sender) = SENDER.get() else { return };
    let end = Instant::now() + limit;
    let (written, done) = mpsc::sync_channel(0);
    let mut message = Message::Flush(written);
    while let Err(TrySendError::Full(unsent)) = sender.try_send(message) {
        if Instant::now() >= end {
            return;
        }
        message = unsent;
        thread::sleep(Duration::from_millis(1));
    }
    // Ends with an error in either case: the sender is dropped, or the time is over.
    let _ = done.recv_timeout(end.saturating_duration_since(Instant::now()));
}

fn submit(bytes: Vec<u8>) {
    match SENDER.get() {
        // An error means that standard error is closed.
        None => drop(io::stderr().write_all(&bytes)),
        Some(sender) => {
            if sender.try_send(Message::Bytes(bytes)).is_err() {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn write_all(receiver: &Receiver<Message>) {
    let mut output = io::stderr();
    for message in receiver {
        match message {
            // An error means that standard error is closed.
            Message::Bytes(bytes) => drop(output.write_all(&bytes)),
            Message::Flush(written) => drop(written),
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let _ = writeln!(
                output,
                "{dropped} log lines dropped: standard error was not read"
            );
        }
    }
}

/// The logger's output: one write for each line.
struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        submit(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A logging statement: file and line.
type Statement = (Option<&'static str>, Option<u32>);

struct LimitedLogger {
    logger: Logger,
    statements: Mutex<HashMap<Statement, LogLimit>>,
}

impl Log for LimitedLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.logger.matches(record) {
            return;
        }
        // Whoever asks for debug lines wants all of them.
        if record.level() <= Level::Info {
            let statement = (record.file_static(), record.line());
            let passed = lock(&self.statements)
                .entry(statement)
                .or_insert_with(|| LogLimit::with_burst(BURST))
                .pass();
            match passed {
                None => return,
                Some(0) => {}
                Some(count) => print(&format!("({count} lines like the next one suppressed)")),
            }
        }
        self.logger.log(record);
    }

    fn flush(&self) {}
}
