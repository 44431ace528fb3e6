//! Guest memory in memfds.

use std::{fs::File, sync::Arc};

use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
};

/// Guest memory: two regions of one guest-physical range each, adjacent, in separate files.
#[derive(Clone)]
pub struct Guest {
    pub memory: Arc<GuestMemoryMmap>,
}

/// Bytes of each region.
pub const REGION: u64 = 0x100_0000;

fn memfd(size: u64) -> File {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    File::from(fd)
}

impl Guest {
    pub fn new() -> Self {
        let region = |start: u64| {
            let size = usize::try_from(REGION).unwrap();
            (
                GuestAddress(start),
                size,
                Some(FileOffset::new(memfd(REGION), 0)),
            )
        };
        let memory = GuestMemoryMmap::from_ranges_with_files([region(0), region(REGION)]).unwrap();
        Self {
            memory: Arc::new(memory),
        }
    }

    /// The same with another region, which may map any file.
    pub fn with_region(&self, start: u64, size: u64, file: File) -> Self {
        let at = Some(FileOffset::new(file, 0));
        let size = usize::try_from(size).unwrap();
        let region = GuestRegionMmap::from_range(GuestAddress(start), size, at).unwrap();
        Self {
            memory: Arc::new(self.memory.insert_region(Arc::new(region)).unwrap()),
        }
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn read(&self, address: u64, bytes: &mut [u8]) {
        self.memory
            .read_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.read(address, &mut bytes);
        bytes
    }

    pub fn table(&self) -> Vec<VhostUserMemoryRegionInfo> {
        self.memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect()
    }

    pub fn host_address(&self, address: u64) -> u64 {
        self.memory.get_host_address(GuestAddress(address)).unwrap() as u64
    }
}
