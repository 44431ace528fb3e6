//! The device as the `vhost-user-backend` crate calls it.

use std::{io, sync::Arc};

use vdma_protocol::{
    CONFIG_MAGIC, CONFIG_VERSION, Config, FEATURE_BAR, Le16, Le32, Le64, STATE_BAR_MAPPED,
    STATE_PERSISTENT, STATE_SHARED,
};
use vhost::vhost_user::{
    Backend as BackendChannel,
    message::{VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures},
};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::{
    virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::epoll::EventSet;

use super::{
    bar::Bar,
    device::{Device, DeviceSettings},
    session::Session,
    vring::{Memory, Vring},
};
use crate::{
    engine::{Engine, MAX_TRANSFER},
    memory::Backing,
    virtqueue::MAX_SEGMENTS,
};

/// Feature bits that a device with these settings offers.
fn offered_features(settings: &DeviceSettings) -> u64 {
    1 << VIRTIO_F_VERSION_1
        | u64::from(settings.access_platform) << VIRTIO_F_ACCESS_PLATFORM
        | 1 << VIRTIO_RING_F_INDIRECT_DESC
        | 1 << VIRTIO_RING_F_EVENT_IDX
        | 1 << FEATURE_BAR
        | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

/// One device as one front end sees it.
pub(super) struct Backend {
    session: Arc<Session>,
    bar: Arc<Bar>,
}

impl Backend {
    pub(super) fn new(session: Arc<Session>, bar: Arc<Bar>) -> Self {
        Self { session, bar }
    }

    fn device(&self) -> &Device {
        self.session.device()
    }

    fn config(&self) -> Config {
        let mut state = 0;
        if self.bar.is_mapped() {
            state |= STATE_BAR_MAPPED;
        }
        if let Backing::File { share, .. } = self.device().memory().backing() {
            state |= STATE_PERSISTENT;
            if *share {
                state |= STATE_SHARED;
            }
        }
        Config {
            magic: Le32::new(CONFIG_MAGIC),
            version: Le32::new(CONFIG_VERSION),
            memory_size: Le64::new(self.device().memory().size()),
            operations: Le64::new(Engine::operations()),
            num_queues: Le16::new(self.device().settings().num_queues),
            reserved0: Le16::new(0),
            max_segments: Le32::new(u32::from(MAX_SEGMENTS)),
            max_transfer: Le32::new(MAX_TRANSFER),
            state: Le32::new(state),
            reserved1: [0; 24],
        }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        usize::from(self.device().settings().num_queues)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.device().settings().queue_size)
    }

    fn features(&self) -> u64 {
        self.session.note_handshake();
        offered_features(self.device().settings())
    }

    fn acked_features(&self, features: u64) {
        log::debug!("{}: features {features:#x}", self.device().name());
        if features & (1 << FEATURE_BAR) != 0 {
            self.bar.map();
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::SHMEM
    }

    fn reset_device(&self) {
        self.session.drain();
        self.bar.unmapped();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The crate sets it on each ring as well; nothing else depends on it.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.config().to_bytes();
        let range = usize::try_from(offset).ok().and_then(|begin| {
            let end = begin.checked_add(usize::try_from(size).ok()?)?;
            bytes.get(begin..end)
        });
        // An empty reply tells the front end that the range is outside of the space.
        range.map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        // Writes are specified to be ignored. An error would close the connection, and any guest
        // can write.
        if self.device().log_limit().pass().is_some() {
            log::warn!(
                "{}: ignored a write of {} bytes to the read-only configuration space at {offset}",
                self.device().name(),
                buf.len()
            );
        }
        Ok(())
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        if !self.session.accept_table() {
            return Err(io::Error::other(
                "memory regions were added or removed one by one, which is not offered",
            ));
        }
        // Once this returns the front end may reuse memory that is no longer in the table.
        self.session.drain();
        Ok(())
    }

    fn set_backend_req_fd(&self, channel: BackendChannel) {
        self.bar.set_channel(channel);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // The crate's own event loop gets no rings: `worker` runs them.
        Vec::new()
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        // The ring was marked as stopped under its lock, so that no pass is in progress.
        log::debug!("{} queue {queue_index}: stopped", self.device().name());
        if self.session.all_stopped() {
            self.bar.unmapped();
        }
        Ok(())
    }

    fn handle_event(
        &self,
        _device_event: u16,
        _evset: EventSet,
        _vrings: &[Vring],
        _thread_id: usize,
    ) -> io::Result<()> {
        // Only the crate's event loop calls this, which has no thread here.
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        // The size of a PCI BAR is a power of two, and QEMU aborts on another one. The part beyond
        // device memory stays unmapped.
        let window = self.device().memory().size().next_power_of_two();
        Ok(VhostUserShMemConfig::new(1, &[window]))
    }
}
