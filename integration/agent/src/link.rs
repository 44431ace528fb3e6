//! The connection to the harness, on which all threads of the agent send.

use std::{
    fs::File,
    sync::{Mutex, PoisonError},
};

use guest_agent::{ToHost, write_frame};

use crate::kernel_log;

/// The sending half of the connection.
pub(crate) struct Link {
    port: Mutex<File>,
}

impl Link {
    /// Sends over `port`.
    pub(crate) fn new(port: File) -> Self {
        Self {
            port: Mutex::new(port),
        }
    }

    /// Sends a message to the harness.
    pub(crate) fn send(&self, message: &ToHost) {
        // A thread that panicked while it held the lock had written a whole frame or none.
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = write_frame(&mut *port, message) {
            kernel_log::fatal(&error.to_string());
        }
    }
}
