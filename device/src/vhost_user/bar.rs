//! The BAR: asking the front end to map device memory into the guest.
//!
//! The request goes out once the driver has acknowledged its features, from a thread of its own: the
//! front end answers while it may itself be waiting for the socket's thread. Until the answer is
//! there no request is served, so that a driver whose first request came back knows that the BAR
//! either shows device memory or never will (`STATE_BAR_MAPPED` says which).

use std::{
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread,
};

use vdma_protocol::SHMEM_ID_DEVICE_MEMORY;
use vhost::vhost_user::{
    Backend as BackendChannel, VhostUserFrontendReqHandler,
    message::{VhostUserMMap, VhostUserMMapFlags},
};

use super::{session::Session, vring::lock};

/// Most threads of a device that wait for an answer. A front end that goes without closing its
/// channel leaves one behind, and there must not be any number of them.
const MAX_WAITING: usize = 64;

#[derive(Debug, Default)]
struct State {
    mapped: bool,
    /// Sent and not answered, with no stop of all rings since.
    pending: bool,
    /// Counts requests to map, stops of all rings and the front end's departure; an answer to
    /// anything but the latest is void.
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

    /// Whether the guest sees device memory.
    pub(super) fn is_mapped(&self) -> bool {
        lock(&self.state).mapped
    }

    /// Takes the channel on which requests to the front end are sent.
    pub(super) fn set_channel(self: &Arc<Self>, channel: BackendChannel) {
        let (sender, requests) = mpsc::channel();
        let bar = Arc::clone(self);
        let waiting = self.session.device().bar_threads();
        if waiting.fetch_add(1, Ordering::SeqCst) >= MAX_WAITING {
            waiting.fetch_sub(1, Ordering::SeqCst);
            log::warn!(
                "{}: {MAX_WAITING} front ends left without closing their channel; no BAR for this one",
                self.name()
            );
            return;
        }
        let mapper = thread::Builder::new().name("bar".to_owned());
        let spawned = mapper.spawn(move || {
            let mut accepted = false;
            for request in requests {
                let mut answer = bar.send_map(&channel);
                if answer.is_err() && accepted && bar.session.shows_device_memory() {
                    // A front end that was only paused, or reset while it had not answered yet, has
                    // kept the mapping, and takes no second one in its place.
                    answer = Ok(());
                }
                accepted |= answer.is_ok();
                bar.answered(request, answer);
            }
            let device = bar.session.device();
            device.bar_threads().fetch_sub(1, Ordering::SeqCst);
        });
        match spawned {
            Ok(_) => *lock(&self.requests) = Some(sender),
            Err(e) => {
                waiting.fetch_sub(1, Ordering::SeqCst);
                log::warn!("{}: cannot start the thread for the BAR: {e}", self.name());
            }
        }
    }

    /// The driver has acknowledged the BAR: maps it, unless it is mapped, and holds requests back
    /// until that is answered.
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
            let nothing = "it offers no channel for it (SHMEM needs BACKEND_REQ)".to_owned();
            self.answered(request, Err(nothing));
        }
    }

    /// No ring runs any more: the front end takes the mapping away. An answer that is still to come
    /// says nothing about what the next driver sees.
    pub(super) fn unmapped(&self) {
        let mut state = lock(&self.state);
        state.mapped = false;
        state.latest += 1;
        if std::mem::take(&mut state.pending) {
            // The next driver may do without the BAR.
            self.session.open_gate();
        }
    }

    /// The front end has gone: nothing more is sent, an answer that is still to come says nothing,
    /// and the thread ends.
    pub(super) fn close(&self) {
        lock(&self.requests).take();
        lock(&self.state).latest += 1;
    }

    fn send_map(&self, channel: &BackendChannel) -> Result<(), String> {
        let memory = self.session.device().memory();
        let region = VhostUserMMap {
            shmid: SHMEM_ID_DEVICE_MEMORY,
            padding: [0; 7],
            fd_offset: 0,
            shm_offset: 0,
            len: memory.size(),
            flags: VhostUserMMapFlags::WRITABLE.bits(),
        };
        channel
            .shmem_map(&region, memory.file())
            .map(drop)
            .map_err(|e| e.to_string())
    }

    fn answered(&self, request: u64, answer: Result<(), String>) {
        {
            let mut state = lock(&self.state);
            if request != state.latest {
                return;
            }
            state.pending = false;
            state.mapped = answer.is_ok();
            self.session.open_gate();
        }
        match answer {
            Ok(()) => log::info!("{}: BAR mapped", self.name()),
            Err(e) => log::warn!(
                "{}: the front end does not map the BAR: {e}; going on without",
                self.name()
            ),
        }
    }
}
