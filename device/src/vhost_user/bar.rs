//! The BAR: asking the front end to map device memory into the guest.
//!
//! The request goes out once the driver has acknowledged its features, from a thread of its own,
//! since the front end may be waiting for the socket's thread before it replies. Until the reply
//! arrives no request is taken, so that a driver whose first request has completed knows that the
//! BAR either maps device memory or never will (`STATE_BAR_MAPPED` tells which). A front end that
//! does not reply within five seconds goes without a BAR.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread,
};

use thiserror::Error;
use vdma_protocol::SHMEM_ID_DEVICE_MEMORY;
use vhost::vhost_user::{
    Backend as BackendChannel, VhostUserFrontendReqHandler,
    message::{VhostUserMMap, VhostUserMMapFlags},
};

use super::session::Session;
use crate::lock::lock;

/// Most threads of a device that wait for a reply. A front end that disconnects without closing its
/// channel leaves one behind, and their number must be bounded.
const MAX_WAITING: usize = 64;

/// Why the BAR is not mapped.
#[derive(Debug, Error)]
enum MapError {
    #[error("it provides no channel (SHMEM needs BACKEND_REQ)")]
    NoChannel,
    #[error(transparent)]
    Refused(#[from] io::Error),
}

#[derive(Debug, Default)]
struct State {
    mapped: bool,
    /// A request has been sent, there was no reply, and not all rings have stopped since.
    pending: bool,
    /// Number of requests, stops of all rings and disconnections; a reply to anything but the
    /// latest is stale.
    latest: u64,
}

/// The BAR of one front end.
pub(super) struct Bar {
    session: Arc<Session>,
    state: Mutex<State>,
    requests: Mutex<Option<mpsc::Sender<u64>>>,
}

impl Bar {
    pub(super) fn new(session: Arc<Session>) -> Arc<Self> {
        Arc::new(Self {
            session,
            state: Mutex::default(),
            requests: Mutex::default(),
        })
    }

    fn name(&self) -> &str {
        self.session.device().name()
    }

    /// Whether the BAR maps device memory.
    pub(super) fn is_mapped(&self) -> bool {
        lock(&self.state).mapped
    }

    /// Takes the channel on which requests to the front end are sent, and starts the thread that
    /// uses it.
    pub(super) fn set_channel(self: &Arc<Self>, channel: BackendChannel) {
        let threads = self.session.device().bar_threads();
        if threads.fetch_add(1, Ordering::SeqCst) >= MAX_WAITING {
            threads.fetch_sub(1, Ordering::SeqCst);
            log::warn!(
                "{}: {MAX_WAITING} front ends disconnected without closing their channel; no BAR for \
                 this one",
                self.name()
            );
            return;
        }
        // A reply is asked for whether or not REPLY_ACK was negotiated: without one it is unknown
        // whether the BAR is mapped. A front end that sends none goes without a BAR.
        channel.set_reply_ack_flag(true);
        let (sender, requests) = mpsc::channel();
        let bar = Arc::clone(self);
        let thread = thread::Builder::new().name("bar".to_owned());
        let spawned = thread.spawn(move || {
            bar.send_requests(requests, &channel);
            let threads = bar.session.device().bar_threads();
            threads.fetch_sub(1, Ordering::SeqCst);
        });
        match spawned {
            Ok(_) => *lock(&self.requests) = Some(sender),
            Err(e) => {
                threads.fetch_sub(1, Ordering::SeqCst);
                log::warn!("{}: cannot start the thread for the BAR: {e}", self.name());
            }
        }
    }

    /// Sends each request to the front end and waits for its reply.
    fn send_requests(&self, requests: mpsc::Receiver<u64>, channel: &BackendChannel) {
        let mut accepted = false;
        for request in requests {
            let mut reply = self.send_map(channel);
            if reply.is_err() && accepted && self.session.maps_device_memory() {
                // A front end that was only paused, or reset before it had replied, has kept the
                // mapping and refuses a second one in its place.
                reply = Ok(());
            }
            accepted |= reply.is_ok();
            self.handle_reply(request, reply);
        }
    }

    /// Maps the BAR, which the driver has acknowledged, unless it is mapped. Requests are held
    /// until the front end has replied.
    pub(super) fn map(&self) {
        let request = {
            let mut state = lock(&self.state);
            if state.mapped || state.pending {
                return;
            }
            state.latest += 1;
            state.pending = true;
            self.session.close_gate();
            state.latest
        };
        let sent = lock(&self.requests)
            .as_ref()
            .is_some_and(|requests| requests.send(request).is_ok());
        if !sent {
            self.handle_reply(request, Err(MapError::NoChannel));
        }
    }

    /// Records that no ring runs any more, upon which the front end removes the mapping. A reply
    /// that is still outstanding does not apply to the next driver.
    pub(super) fn unmapped(&self) {
        let mut state = lock(&self.state);
        state.mapped = false;
        state.latest += 1;
        if std::mem::take(&mut state.pending) {
            // The next driver may not use the BAR.
            self.session.open_gate();
        }
    }

    /// Ends the thread after the front end has disconnected: nothing more is sent, and an
    /// outstanding reply is ignored.
    pub(super) fn close(&self) {
        lock(&self.requests).take();
        lock(&self.state).latest += 1;
    }

    fn send_map(&self, channel: &BackendChannel) -> Result<(), MapError> {
        let memory = self.session.device().memory();
        let region = VhostUserMMap {
            shmid: SHMEM_ID_DEVICE_MEMORY,
            padding: [0; 7],
            fd_offset: 0,
            shm_offset: 0,
            len: memory.size(),
            flags: VhostUserMMapFlags::WRITABLE.bits(),
        };
        channel.shmem_map(&region, memory.file())?;
        Ok(())
    }

    fn handle_reply(&self, request: u64, reply: Result<(), MapError>) {
        {
            let mut state = lock(&self.state);
            if request != state.latest {
                return;
            }
            state.pending = false;
            // After the deadline requests have been taken, and the driver may have concluded that
            // the BAR is not mapped.
            if !self.session.open_gate() {
                return;
            }
            state.mapped = reply.is_ok();
        }
        match reply {
            Ok(()) => log::info!("{}: BAR mapped", self.name()),
            Err(e) => log::warn!(
                "{}: the front end does not map the BAR: {e}; continuing without a BAR",
                self.name()
            ),
        }
    }
}
