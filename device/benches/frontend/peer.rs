//! A backend under measurement: the device, or qemu-storage-daemon.

use std::{
    fs::File,
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::fs::MemfdFlags;
use vdma_protocol::{Operation, Response, Status};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{Frontend, VhostUserFrontend, message::VhostUserProtocolFeatures},
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    case::{Case, DEVICE_BYTES, MIB, header},
    ring::{BASE, Buffer, FastRing},
};

const GUEST_BYTES: u64 = 512 * MIB;
const QUEUE_SIZE: u16 = 256;

const HEADERS: u64 = 16 * MIB;
const RESPONSES: u64 = 17 * MIB;
const DATA: u64 = 64 * MIB;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PeerKind {
    Device,
    StorageDaemon,
}

pub struct Peer {
    kind: PeerKind,
    child: Child,
    guest: Arc<MmapRegion>,
    /// The device's memory file, mapped here for `memcpy`.
    device: Option<MmapRegion>,
    pub ring: FastRing,
    _frontend: Frontend,
    _directory: tempfile::TempDir,
}

fn map(file: File, bytes: u64) -> MmapRegion {
    MmapRegion::from_file(FileOffset::new(file, 0), bytes as usize).unwrap()
}

impl Peer {
    pub fn start(kind: PeerKind, extra: &[String]) -> Result<Self, String> {
        let directory = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .map_err(|e| e.to_string())?;
        let socket = directory.path().join("socket");
        let memory_file = directory.path().join("memory");
        let mut command = match kind {
            PeerKind::Device => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-device-dma"));
                command.arg("--socket-path").arg(&socket);
                command.arg("--memory-file").arg(&memory_file);
                command
                    .args(["--memory-size=256M", "--log-level=warn"])
                    .args(extra);
                command
            }
            PeerKind::StorageDaemon => {
                let mut command = Command::new("qemu-storage-daemon");
                let node = "driver=null-co,node-name=n0,size=1073741824,read-zeroes=off";
                command.args(["--blockdev", node, "--export"]).arg(format!(
                    "type=vhost-user-blk,id=e0,node-name=n0,addr.type=unix,addr.path={},writable=on",
                    socket.display()
                ));
                command
            }
        };
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        let begin = Instant::now();
        let mut frontend = loop {
            match Frontend::connect(&socket, 1) {
                Ok(frontend) => break frontend,
                Err(e) if begin.elapsed() > Duration::from_secs(10) => return Err(e.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };

        let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, GUEST_BYTES).unwrap();
        let file = File::from(fd);
        let guest = Arc::new(map(file.try_clone().unwrap(), GUEST_BYTES));
        // All pages are faulted in before the measurement.
        guest
            .get_slice(0, GUEST_BYTES as usize)
            .unwrap()
            .write_volatile_pages();
        let device = (kind == PeerKind::Device).then(|| {
            let open = File::options().read(true).write(true).open(&memory_file);
            let region = map(open.unwrap(), DEVICE_BYTES);
            region
                .get_slice(0, DEVICE_BYTES as usize)
                .unwrap()
                .write_volatile_pages();
            region
        });

        let ring = FastRing::new(Arc::clone(&guest), QUEUE_SIZE);
        let setup = |frontend: &mut Frontend| -> vhost::Result<()> {
            frontend.set_owner()?;
            // VERSION_1, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES.
            let wanted = 1 << 32 | 1 << 28 | 1 << 29 | 1 << 30;
            let features = frontend.get_features()? & wanted;
            let protocol = frontend.get_protocol_features()?;
            frontend.set_protocol_features(protocol & VhostUserProtocolFeatures::CONFIG)?;
            frontend.set_features(features)?;
            let base = guest.as_ptr() as u64;
            frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: BASE,
                memory_size: GUEST_BYTES,
                userspace_addr: base,
                mmap_offset: 0,
                mmap_handle: file.as_raw_fd(),
            }])?;
            frontend.set_vring_num(0, QUEUE_SIZE)?;
            frontend.set_vring_addr(
                0,
                &VringConfigData {
                    queue_max_size: QUEUE_SIZE,
                    queue_size: QUEUE_SIZE,
                    flags: 0,
                    desc_table_addr: base + ring.descriptors,
                    used_ring_addr: base + ring.used,
                    avail_ring_addr: base + ring.available,
                    log_addr: None,
                },
            )?;
            frontend.set_vring_base(0, 0)?;
            frontend.set_vring_call(0, &event(&ring.call))?;
            frontend.set_vring_kick(0, &event(&ring.kick))?;
            frontend.set_vring_enable(0, true)
        };
        setup(&mut frontend).map_err(|e| e.to_string())?;
        Ok(Self {
            kind,
            child,
            guest,
            device,
            ring,
            _frontend: frontend,
            _directory: directory,
        })
    }

    fn write(&self, address: u64, bytes: &[u8]) {
        let at = (address - BASE) as usize;
        let whole = self.guest.get_slice(at, bytes.len()).unwrap();
        whole.write_slice(bytes, 0).unwrap();
    }

    /// The data buffers of a slot: its own part of guest memory. Scattered segments lie two apart.
    pub fn data(&self, case: &Case, slot: u16) -> Vec<Buffer> {
        let stride = if case.segment < case.length { 2 } else { 1 };
        let span = u64::from(case.length) * stride;
        let begin = DATA + u64::from(slot) * span % (GUEST_BYTES / 2);
        let count = case.length.div_ceil(case.segment);
        (0..u64::from(count))
            .map(|index| Buffer {
                address: begin + index * u64::from(case.segment) * stride,
                length: case.segment.min(case.length),
                writable: case.operation != Operation::Write,
            })
            .collect()
    }

    /// The chain of a slot, headers written.
    pub fn prepare(&self, case: &Case, slot: u16) -> Vec<Buffer> {
        let readable = |address, length| Buffer {
            address,
            length,
            writable: false,
        };
        let writable = |address, length| Buffer {
            address,
            length,
            writable: true,
        };
        let head = HEADERS + 64 * u64::from(slot);
        let response = RESPONSES + 64 * u64::from(slot);
        match self.kind {
            PeerKind::Device => {
                self.write(head, &header(case, slot));
                self.write(response, &[0xff; 16]);
                let moves = [Operation::Read, Operation::Write, Operation::ReadCrc32c];
                let data = if moves.contains(&case.operation) {
                    self.data(case, slot)
                } else {
                    vec![]
                };
                let (incoming, outgoing): (Vec<_>, Vec<_>) =
                    data.into_iter().partition(|b| b.writable);
                let mut chain = vec![readable(head, 32)];
                chain.extend(outgoing);
                chain.push(writable(response, 16));
                chain.extend(incoming);
                chain
            }
            // A virtio-blk read of a block: of 4 KiB for a NOP as well, since null-co copies
            // nothing.
            PeerKind::StorageDaemon => {
                let mut bytes = [0; 16];
                bytes[8..].copy_from_slice(&(8 * u64::from(slot)).to_le_bytes());
                self.write(head, &bytes);
                self.write(response, &[0xff]);
                let data = DATA + 4096 * u64::from(slot);
                vec![
                    readable(head, 16),
                    writable(data, 4096),
                    writable(response, 1),
                ]
            }
        }
    }

    /// Makes sure that the first request really succeeded.
    pub fn check(&self, case: &Case) {
        let mut bytes = [0; 16];
        let at = (RESPONSES - BASE) as usize;
        self.guest
            .get_slice(at, 16)
            .unwrap()
            .read_slice(&mut bytes, 0)
            .unwrap();
        match self.kind {
            PeerKind::Device => {
                assert_eq!(
                    Response::from_bytes(&bytes).status(),
                    Status::OK,
                    "{}",
                    case.name
                );
            }
            PeerKind::StorageDaemon => assert_eq!(bytes[0], 0, "{}", case.name),
        }
    }

    /// Copies between device memory at `at` and a buffer, as the device would.
    pub fn copy(&self, to_device: bool, at: u64, buffer: &Buffer) {
        let Some(device) = &self.device else { return };
        let length = buffer.length as usize;
        let ours = device.get_slice(at as usize, length).unwrap();
        let theirs = self
            .guest
            .get_slice((buffer.address - BASE) as usize, length)
            .unwrap();
        if to_device {
            theirs.copy_to_volatile_slice(ours);
        } else {
            ours.copy_to_volatile_slice(theirs);
        }
    }
}

fn event(file: &File) -> EventFd {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let fd = file.try_clone().unwrap().into_raw_fd();
    // SAFETY: the descriptor was just created, and `into_raw_fd` has released its only owner.
    unsafe { EventFd::from_raw_fd(fd) }
}

/// Touches every page.
trait Touch {
    fn write_volatile_pages(&self);
}

impl Touch for vm_memory::VolatileSlice<'_> {
    fn write_volatile_pages(&self) {
        for at in (0..self.len()).step_by(4096) {
            self.write_obj(1u8, at).unwrap();
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
