//! Length-prefixed frames.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Maximum size of a frame's body: 4 MiB.
pub const MAX_FRAME: usize = 4 << 20;

/// Error of sending or receiving a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed.
    #[error("connection between guest and harness: {0}")]
    Io(#[from] io::Error),
    /// A frame is longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes between guest and harness is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// The content of a frame is not a message.
    #[error("malformed message between guest and harness: {0}")]
    Malformed(#[from] postcard::Error),
}

/// Sends `message` as one frame, in one write.
///
/// # Errors
///
/// When the message is too long or the connection fails.
pub fn write_frame<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0; 4])?;
    let length = bytes.len() - 4;
    let prefix = u32::try_from(length)
        .ok()
        .filter(|_| length <= MAX_FRAME)
        .ok_or(FrameError::TooLong(length))?;
    bytes[..4].copy_from_slice(&prefix.to_le_bytes());
    to.write_all(&bytes)?;
    to.flush()?;
    Ok(())
}

/// Receives one message; returns `None` if the connection ended between two frames.
///
/// # Errors
///
/// When the connection fails or ends within a frame, or the frame is not a message.
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut prefix = [0; 4];
    let first = loop {
        match from.read(&mut prefix) {
            Ok(count) => break count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut prefix[first..])?;
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    Ok(Some(postcard::from_bytes(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CommandId, Stream, ToHost};

    #[test]
    fn what_is_written_is_read() {
        let message = ToHost::Output {
            id: CommandId(7),
            stream: Stream::Stderr,
            data: vec![1, 2, 3],
        };
        let mut wire = Vec::new();
        write_frame(&mut wire, &message).unwrap();
        write_frame(&mut wire, &ToHost::Pong).unwrap();
        let mut reader = wire.as_slice();
        assert_eq!(read_frame::<ToHost>(&mut reader).unwrap(), Some(message));
        assert_eq!(
            read_frame::<ToHost>(&mut reader).unwrap(),
            Some(ToHost::Pong)
        );
        assert_eq!(read_frame::<ToHost>(&mut reader).unwrap(), None);
    }

    #[test]
    fn a_truncated_frame_is_an_error() {
        let mut wire = Vec::new();
        write_frame(&mut wire, &ToHost::Pong).unwrap();
        for length in 1..wire.len() {
            assert!(read_frame::<ToHost>(&mut &wire[..length]).is_err());
        }
    }

    #[test]
    fn a_length_is_checked_before_memory_is_allocated() {
        let wire = u32::MAX.to_le_bytes();
        assert!(matches!(
            read_frame::<ToHost>(&mut wire.as_slice()),
            Err(FrameError::TooLong(_))
        ));
    }
}
