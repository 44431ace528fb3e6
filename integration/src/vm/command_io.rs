//! Where the output of commands in a guest goes.

use anyhow::Result;
use guest_agent::{CommandEnd, Stream};

/// The consumer of a command's output.
pub(crate) trait CommandIo {
    /// Takes output of the command.
    fn output(&mut self, stream: Stream, data: &[u8]) -> Result<()>;
    /// The command has read the input that was sent; more may be sent now.
    fn input_taken(&mut self) {}
}

/// A command in the background.
#[derive(Default)]
pub(super) struct Background {
    pub(super) output: Collected,
    pub(super) end: Option<CommandEnd>,
}

/// A command's output, both streams in the order of arrival.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) bytes: Vec<u8>,
}

impl Collected {
    /// The last line that is not blank.
    pub(crate) fn last_line(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes)
            .ok()?
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
    }
}

impl CommandIo for Collected {
    fn output(&mut self, _stream: Stream, data: &[u8]) -> Result<()> {
        /// Enough for any report, and a limit on what a test can make the host store.
        const LIMIT: usize = 1 << 20;
        let free = LIMIT.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&data[..data.len().min(free)]);
        Ok(())
    }
}
