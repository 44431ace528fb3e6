//! What the kernel logs while a test runs.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

use anyhow::{Context as _, Result};

/// Reads the kernel log from a point in time on.
pub(crate) struct Reader(File);

impl Reader {
    /// Starts with the next message.
    pub(crate) fn from_now() -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("/dev/kmsg")?;
        file.seek(SeekFrom::End(0)).context("/dev/kmsg")?;
        Ok(Self(file))
    }

    /// The messages that have come since the last call.
    pub(crate) fn lines(&mut self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => lines.push(String::from_utf8_lossy(&record[..length]).into_owned()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(lines),
                // Messages were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) => return Err(error).context("/dev/kmsg"),
            }
        }
    }
}
