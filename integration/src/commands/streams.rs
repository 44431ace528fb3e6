//! This process's standard streams, connected to those of a command in a guest.

use std::{
    io::{Read as _, Write as _},
    sync::mpsc::{Sender, channel},
};

use anyhow::{Context, Result};
use guest_agent::Stream;

use crate::vm::{command_io::CommandIo, event::Event};

/// Maximum number of bytes of input in one message.
const CHUNK: usize = 32 << 10;

/// This process's standard streams.
pub(crate) struct Inherited {
    more_input: Option<Sender<()>>,
}

impl Inherited {
    /// Does not read standard input.
    pub(crate) fn output_only() -> Self {
        Self { more_input: None }
    }

    /// Starts a thread that sends standard input as events.
    pub(crate) fn new(events: Sender<Event>) -> Self {
        let (more_input, wanted) = channel();
        std::thread::spawn(move || {
            let mut stdin = std::io::stdin().lock();
            let mut buffer = vec![0; CHUNK];
            loop {
                let data = match stdin.read(&mut buffer) {
                    Ok(count) => buffer[..count].to_vec(),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    // An unreadable input is treated as a closed one.
                    Err(_) => Vec::new(),
                };
                let end = data.is_empty();
                if events.send(Event::Input(data)).is_err() || end {
                    return;
                }
                // Only one message is in flight, so that input cannot accumulate in the guest.
                if wanted.recv().is_err() {
                    return;
                }
            }
        });
        Self {
            more_input: Some(more_input),
        }
    }
}

impl CommandIo for Inherited {
    fn output(&mut self, stream: Stream, data: &[u8]) -> Result<()> {
        match stream {
            Stream::Stdout => {
                let mut stdout = std::io::stdout().lock();
                stdout
                    .write_all(data)
                    .and_then(|()| stdout.flush())
                    .context("cannot write to standard output")
            }
            Stream::Stderr => std::io::stderr()
                .lock()
                .write_all(data)
                .context("cannot write to standard error"),
        }
    }

    fn input_taken(&mut self) {
        if let Some(more_input) = &self.more_input {
            // The reading thread ends with the input.
            let _ = more_input.send(());
        }
    }
}
