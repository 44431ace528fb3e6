//! A vhost-user front end: its handshake, its rings, and the BAR.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use rustix::event::{PollFd, PollFlags, Timespec};
use vdma_protocol::{Config, FEATURE_BAR};
use vhost::{
    VhostBackend, VringConfigData,
    vhost_user::{
        self, Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend,
        VhostUserFrontendReqHandler,
        message::{
            VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserMMap, VhostUserProtocolFeatures,
        },
    },
};

use super::{
    deadline::DEADLINE,
    guest::Guest,
    ring::{DriverRing, RING_BYTES, Used},
};

/// VERSION_1, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, BAR.
pub const FEATURES: u64 = 1 << 32 | 1 << 28 | 1 << 29 | 1 << 30 | 1 << FEATURE_BAR;
pub const EVENT_IDX: u64 = 1 << 29;

/// Options of a front end.
#[derive(Clone)]
pub struct Connect {
    pub features: u64,
    pub shmem: bool,
    /// Negotiate REPLY_ACK.
    pub reply_ack: bool,
    pub num_queues: usize,
    pub queue_size: u16,
    /// The reply to requests to map the BAR; it is sent once this lock can be taken.
    pub map_reply: Arc<Mutex<bool>>,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            features: FEATURES,
            shmem: true,
            reply_ack: true,
            num_queues: 1,
            queue_size: 256,
            map_reply: Arc::new(Mutex::new(true)),
        }
    }
}

/// Guest address of the BAR, when device memory is mapped there.
pub const BAR: u64 = 1 << 36;

/// The front end's end of the channel for the backend's requests. Like QEMU's it refuses a second
/// mapping, and adds the BAR to the memory table once it is mapped.
pub struct BarWindow {
    reply: Arc<Mutex<bool>>,
    /// `None` once the front end is dropped.
    frontend: Mutex<Option<Frontend>>,
    guest: Guest,
    /// Every request so far.
    pub maps: Mutex<Vec<(VhostUserMMap, File)>>,
    mapped: Mutex<Option<File>>,
}

impl BarWindow {
    /// Guest memory, with the BAR if it is mapped.
    pub fn guest(&self) -> Guest {
        match &*self.mapped.lock().unwrap() {
            None => self.guest.clone(),
            Some(file) => {
                let size = file.metadata().unwrap().len();
                self.guest.with_region(BAR, size, file.try_clone().unwrap())
            }
        }
    }
}

impl VhostUserFrontendReqHandler for BarWindow {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let file = File::options().read(true).write(true).open(path)?;
        let kept = file.try_clone()?;
        self.maps.lock().unwrap().push((*request, file));
        let accept = *self.reply.lock().unwrap();
        let mut mapped = self.mapped.lock().unwrap();
        if !accept || mapped.is_some() {
            return Err(std::io::Error::from_raw_os_error(22));
        }
        *mapped = Some(kept);
        drop(mapped);
        if let Some(frontend) = &*self.frontend.lock().unwrap() {
            let _ = frontend.set_mem_table(&self.guest().table());
        }
        Ok(0)
    }
}

pub struct FrontEnd {
    pub frontend: Frontend,
    pub guest: Guest,
    pub rings: Vec<DriverRing>,
    pub window: Option<Arc<BarWindow>>,
    pub options: Connect,
    /// Feature bits that the device offers.
    pub offered: u64,
}

impl Drop for FrontEnd {
    fn drop(&mut self) {
        if let Some(window) = &self.window {
            window.frontend.lock().unwrap().take();
        }
    }
}

impl FrontEnd {
    /// Connects with the defaults and starts every ring.
    pub fn connect(socket: &Path) -> Self {
        Self::connect_with(socket, &Connect::default())
    }

    pub fn connect_with(socket: &Path, options: &Connect) -> Self {
        let mut front = Self::handshake(socket, options);
        front.start();
        front
    }

    /// Connects and negotiates protocol features, no more.
    pub fn handshake(socket: &Path, options: &Connect) -> Self {
        let mut frontend = Frontend::connect(socket, options.num_queues as u64).unwrap();
        if options.reply_ack {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_eq!(offered & FEATURES, FEATURES, "offered {offered:#x}");
        let mut wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if options.reply_ack {
            wanted |= VhostUserProtocolFeatures::REPLY_ACK;
        }
        if options.shmem {
            wanted |= VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::BACKEND_SEND_FD
                | VhostUserProtocolFeatures::SHMEM;
        }
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol & wanted).unwrap();
        let guest = Guest::new();
        let window = options.shmem.then(|| {
            let window = Arc::new(BarWindow {
                reply: Arc::clone(&options.map_reply),
                frontend: Mutex::new(Some(frontend.clone())),
                guest: guest.clone(),
                maps: Mutex::default(),
                mapped: Mutex::default(),
            });
            let mut handler = FrontendReqHandler::new(Arc::clone(&window)).unwrap();
            handler.set_reply_ack_flag(options.reply_ack);
            frontend
                .set_backend_request_fd(&handler.get_tx_raw_fd())
                .unwrap();
            // A refusal has been sent as a reply, and does not close the channel.
            thread::spawn(move || {
                while let Ok(_) | Err(vhost_user::Error::ReqHandlerError(_)) =
                    handler.handle_request()
                {}
            });
            window
        });
        Self {
            frontend,
            guest,
            rings: Vec::new(),
            window,
            options: options.clone(),
            offered,
        }
    }

    /// Does what a driver does when it is bound: features, memory, rings.
    pub fn start(&mut self) {
        self.frontend.set_features(self.options.features).unwrap();
        self.set_memory();
        self.rings.clear();
        for index in 0..self.options.num_queues {
            let event_index = self.options.features & EVENT_IDX != 0;
            let base = RING_BYTES * index as u64;
            let ring = DriverRing::new(base, self.options.queue_size, event_index);
            // A new ring is zeroed.
            self.guest.write(ring.available, &[0; 0x1000]);
            self.guest.write(ring.used, &[0; 0x3000]);
            self.rings.push(ring);
            self.start_ring(index);
        }
    }

    fn set_memory(&self) {
        let guest = match &self.window {
            None => self.guest.clone(),
            Some(window) => window.guest(),
        };
        self.frontend.set_mem_table(&guest.table()).unwrap();
    }

    /// Does what QEMU does when the VM is paused, or in the first half of a reset.
    pub fn pause(&mut self) {
        for index in 0..self.rings.len() {
            self.stop_ring(index);
        }
    }

    /// Does what QEMU does when the VM is resumed.
    pub fn resume(&mut self) {
        self.frontend.set_features(self.options.features).unwrap();
        self.set_memory();
        for index in 0..self.rings.len() {
            self.start_ring(index);
        }
    }

    /// Does what QEMU does when the driver resets the device.
    pub fn reset(&mut self) {
        self.pause();
        if let Some(window) = &self.window {
            window.mapped.lock().unwrap().take();
        }
    }

    /// Starts or restarts one ring at its current indices.
    pub fn start_ring(&mut self, index: usize) {
        let ring = &self.rings[index];
        self.frontend.set_vring_num(index, ring.size).unwrap();
        let config = VringConfigData {
            queue_max_size: 1024,
            queue_size: ring.size,
            flags: 0,
            desc_table_addr: self.guest.host_address(ring.descriptors),
            used_ring_addr: self.guest.host_address(ring.used),
            avail_ring_addr: self.guest.host_address(ring.available),
            log_addr: None,
        };
        self.frontend.set_vring_addr(index, &config).unwrap();
        self.frontend.set_vring_base(index, ring.next_used).unwrap();
        self.frontend.set_vring_call(index, &ring.call).unwrap();
        self.frontend.set_vring_err(index, &ring.error).unwrap();
        self.frontend.set_vring_kick(index, &ring.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// Stops one ring; returns the index of the next chain to take.
    pub fn stop_ring(&mut self, index: usize) -> u32 {
        self.frontend.get_vring_base(index).unwrap()
    }

    pub fn kick(&self, queue: usize) {
        self.rings[queue].kick.write(1).unwrap();
    }

    /// Waits for the next used entry, sleeping on the call descriptor.
    pub fn wait(&mut self, queue: usize) -> Used {
        self.wait_for(queue).expect("a completion")
    }

    /// The same, or `None` at the deadline.
    pub fn wait_for(&mut self, queue: usize) -> Option<Used> {
        let begin = Instant::now();
        loop {
            let ring = &mut self.rings[queue];
            ring.request_call(&self.guest);
            if let Some(used) = ring.pop_used(&self.guest) {
                return Some(used);
            }
            let left = DEADLINE.checked_sub(begin.elapsed())?;
            if !await_event(&ring.call, left) {
                assert_eq!(
                    ring.pop_used(&self.guest),
                    None,
                    "a completion without a call"
                );
            }
        }
    }

    pub fn config(&mut self) -> [u8; Config::SIZE] {
        let size = u32::try_from(Config::SIZE).unwrap();
        let (_, bytes) = self
            .frontend
            .get_config(0, size, VhostUserConfigFlags::empty(), &[0; Config::SIZE])
            .unwrap();
        bytes.try_into().unwrap()
    }

    pub fn config_word(&mut self, at: usize) -> u32 {
        u32::from_le_bytes(self.config()[at..at + 4].try_into().unwrap())
    }
}

/// Waits until an event counter is readable, and resets it; `false` at the time limit.
pub fn await_event(event: &vmm_sys_util::eventfd::EventFd, limit: std::time::Duration) -> bool {
    // SAFETY: the descriptor stays open while `event` is borrowed.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: limit.as_secs().try_into().unwrap(),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let ready = rustix::event::poll(&mut fds, Some(&limit)).unwrap() > 0;
    let _ = event.read();
    ready
}
