//! Buffers: memory that is made ready for DMA once and used in many requests.

use std::{
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut, Range},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
};

use rustix::ioctl::{Opcode, Setter, Updater, ioctl};
use vdma_protocol::{
    Allocation, Choice, IOCTL_ALLOCATE_BUFFER, IOCTL_IMPORT_BUFFER, IOCTL_REGISTER_BUFFER,
    IOCTL_RELEASE_BUFFER, Registration,
};

use crate::{Device, Error, Mapping, Source, Target};

/// Memory of the process, pinned for as long as this exists.
///
/// The device may read and write it whenever an operation runs, so the process reaches the bytes by
/// volatile loads and stores, or when this is dropped.
#[derive(Debug)]
pub struct RegisteredBuffer<'a> {
    device: &'a Device,
    id: u32,
    memory: *mut u8,
    length: usize,
    _memory: PhantomData<&'a mut [u8]>,
}

/// Memory that the driver has allocated, mapped into the process.
#[derive(Debug)]
pub struct AllocatedBuffer<'a> {
    device: &'a Device,
    id: u32,
    runs: u32,
    file: OwnedFd,
    mapping: Mapping,
}

fn update<const OPCODE: Opcode, T>(device: &Device, value: &mut T) -> io::Result<()> {
    // SAFETY: The opcodes used here are declared, in `vdma_protocol`, with the size of the
    // structure that the driver reads and writes, which is made of integers only.
    let call = unsafe { Updater::<OPCODE, T>::new(value) };
    // SAFETY: `value` is borrowed until the call returns; addresses inside are those of borrowed
    // memory.
    unsafe { ioctl(device.file().as_fd(), call) }.map_err(Into::into)
}

fn release(device: &Device, id: u32) {
    let choice = Choice {
        value: id,
        reserved: 0,
    };
    // SAFETY: The driver reads a `Choice`.
    let call = unsafe { Setter::<{ IOCTL_RELEASE_BUFFER as Opcode }, Choice>::new(choice) };
    // SAFETY: The structure stays borrowed until the call returns. An id that has been released is
    // refused, and nothing is lost.
    let _ = unsafe { ioctl(device.file().as_fd(), call) };
}

/// A part of the buffer `id`, which has `length` bytes. What is not there is refused by the driver.
struct Part {
    id: u32,
    offset: u64,
    length: u64,
}

impl Part {
    fn new(id: u32, length: usize, range: Option<Range<u64>>) -> Self {
        let range = range.unwrap_or(0..length as u64);
        Self {
            id,
            offset: range.start,
            length: range.end.saturating_sub(range.start),
        }
    }

    fn source(self) -> Source<'static> {
        let Self { id, offset, length } = self;
        Source::Buffer { id, offset, length }
    }

    fn target(self) -> Target<'static> {
        let Self { id, offset, length } = self;
        Target::Buffer { id, offset, length }
    }
}

impl Device {
    /// Pins `memory` until the result is dropped. It counts against `RLIMIT_MEMLOCK` of
    /// the user.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `ENOMEM` when the limit does not allow it, `EFAULT` or `EOPNOTSUPP` for
    /// memory that cannot be pinned for good, such as a mapped file of a disk.
    pub fn register<'a>(&'a self, memory: &'a mut [u8]) -> Result<RegisteredBuffer<'a>, Error> {
        let mut registration = Registration {
            address: memory.as_mut_ptr() as u64,
            length: memory.len() as u64,
            ..Registration::default()
        };
        update::<{ IOCTL_REGISTER_BUFFER as Opcode }, _>(self, &mut registration)
            .map_err(self.error("ioctl REGISTER_BUFFER"))?;
        Ok(RegisteredBuffer {
            device: self,
            id: registration.id,
            memory: memory.as_mut_ptr(),
            length: memory.len(),
            _memory: PhantomData,
        })
    }

    /// Allocates at least `length` bytes of memory for DMA, zeroed, and maps them. They count
    /// against `RLIMIT_MEMLOCK` of the user.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `ENOMEM` when there is not enough, or the limit does not allow it.
    pub fn allocate(&self, length: usize) -> Result<AllocatedBuffer<'_>, Error> {
        let mut allocation = Allocation {
            length: length as u64,
            ..Allocation::default()
        };
        update::<{ IOCTL_ALLOCATE_BUFFER as Opcode }, _>(self, &mut allocation)
            .map_err(self.error("ioctl ALLOCATE_BUFFER"))?;
        let descriptor = i32::try_from(allocation.file).unwrap_or(-1);
        // SAFETY: The driver has just made the file for this process.
        let file = unsafe { OwnedFd::from_raw_fd(descriptor) };
        self.finish_buffer(allocation, file)
    }

    /// Takes into use what another process, or another open file, has allocated: `file` is that of
    /// an [`AllocatedBuffer`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `EINVAL` for any other file.
    pub fn import(&self, file: OwnedFd) -> Result<AllocatedBuffer<'_>, Error> {
        let mut allocation = Allocation {
            file: u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX),
            ..Allocation::default()
        };
        update::<{ IOCTL_IMPORT_BUFFER as Opcode }, _>(self, &mut allocation)
            .map_err(self.error("ioctl IMPORT_BUFFER"))?;
        self.finish_buffer(allocation, file)
    }

    fn finish_buffer(
        &self,
        allocation: Allocation,
        file: OwnedFd,
    ) -> Result<AllocatedBuffer<'_>, Error> {
        let length = usize::try_from(allocation.length).unwrap_or(usize::MAX);
        match Mapping::new(file.as_fd(), 0, length, true) {
            Ok(mapping) => Ok(AllocatedBuffer {
                device: self,
                id: allocation.id,
                runs: allocation.runs,
                file,
                mapping,
            }),
            Err(error) => {
                release(self, allocation.id);
                Err(self.error("mmap of a buffer")(error))
            }
        }
    }
}

impl RegisteredBuffer<'_> {
    /// The id, for commands of one's own.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The buffer, or a part of it, for the device to read.
    #[must_use]
    pub fn source(&self, range: Option<Range<u64>>) -> Source<'static> {
        Part::new(self.id, self.length, range).source()
    }

    /// The buffer, or a part of it, for the device to write.
    #[must_use]
    pub fn target(&self, range: Option<Range<u64>>) -> Target<'static> {
        Part::new(self.id, self.length, range).target()
    }
}

impl RegisteredBuffer<'_> {
    fn at(&self, offset: usize, length: usize) -> Result<*mut u8, Error> {
        if offset
            .checked_add(length)
            .is_none_or(|end| end > self.length)
        {
            return Err(Error::OutsideMapping {
                offset,
                size: length,
                length: self.length,
            });
        }
        Ok(self.memory.wrapping_add(offset))
    }

    /// Loads `bytes.len()` bytes from `offset` on, byte by byte.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`].
    pub fn load(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        let from = self.at(offset, bytes.len())?;
        for (index, byte) in bytes.iter_mut().enumerate() {
            // SAFETY: The byte is inside of the memory, which is borrowed for this object.
            *byte = unsafe { from.wrapping_add(index).read_volatile() };
        }
        Ok(())
    }

    /// Stores `bytes` from `offset` on, byte by byte.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`].
    pub fn store(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let to = self.at(offset, bytes.len())?;
        for (index, byte) in bytes.iter().enumerate() {
            // SAFETY: The byte is inside of the memory, which is borrowed for this object.
            unsafe { to.wrapping_add(index).write_volatile(*byte) };
        }
        Ok(())
    }
}

impl Drop for RegisteredBuffer<'_> {
    fn drop(&mut self) {
        release(self.device, self.id);
    }
}

impl AllocatedBuffer<'_> {
    /// The id, for commands of one's own.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Runs of neighbouring pages that the memory consists of.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.runs
    }

    /// The file that keeps the memory, for other processes to [`Device::import`].
    #[must_use]
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The buffer, or a part of it, for the device to read.
    #[must_use]
    pub fn source(&self, range: Option<Range<u64>>) -> Source<'static> {
        Part::new(self.id, self.mapping.len(), range).source()
    }

    /// The buffer, or a part of it, for the device to write.
    #[must_use]
    pub fn target(&self, range: Option<Range<u64>>) -> Target<'static> {
        Part::new(self.id, self.mapping.len(), range).target()
    }
}

impl Deref for AllocatedBuffer<'_> {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

impl DerefMut for AllocatedBuffer<'_> {
    fn deref_mut(&mut self) -> &mut Mapping {
        &mut self.mapping
    }
}

impl Drop for AllocatedBuffer<'_> {
    fn drop(&mut self) {
        release(self.device, self.id);
    }
}
