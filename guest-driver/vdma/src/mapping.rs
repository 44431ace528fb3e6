use std::{ffi::c_void, io, os::fd::BorrowedFd, ptr};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::Error;

mod sealed {
    pub trait Sealed {}
}

/// An integer that can be loaded from and stored to device memory in one access.
pub trait Word: Copy + sealed::Sealed {}

macro_rules! words {
    ($($word:ty),*) => {
        $(impl sealed::Sealed for $word {}
        impl Word for $word {})*
    };
}
words!(u8, u16, u32, u64);

/// Device memory mapped into the process.
///
/// The device, and others who mapped it, may change the memory at any time: it is reached by
/// volatile loads and stores, never by references.
///
/// When the device is removed, an access ends in `SIGBUS`.
#[derive(Debug)]
pub struct Mapping {
    address: *mut c_void,
    length: usize,
}

// SAFETY: The mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: Accesses are volatile and single; racing ones are as those of the device.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        offset: u64,
        length: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let access = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                access,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        Ok(Self { address, length })
    }

    /// Bytes of the mapping.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether the mapping has no bytes: never, for the kernel refuses to make such a one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where the mapping is in the process.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address as usize
    }

    fn at<T: Word>(&self, offset: usize) -> Result<*mut T, Error> {
        let size = size_of::<T>();
        let inside = offset
            .checked_add(size)
            .is_some_and(|end| end <= self.length);
        if !inside || !offset.is_multiple_of(size) {
            return Err(Error::OutsideMapping {
                offset,
                size,
                length: self.length,
            });
        }
        Ok(self.address.wrapping_byte_add(offset).cast())
    }

    /// Loads the word at `offset`, a multiple of its size.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`].
    pub fn load<T: Word>(&self, offset: usize) -> Result<T, Error> {
        let word = self.at::<T>(offset)?;
        // SAFETY: The word is inside of the mapping, aligned, and any bytes are an integer.
        Ok(unsafe { ptr::read_volatile(word) })
    }

    /// Stores `value` at `offset`, a multiple of its size.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`].
    pub fn store<T: Word>(&self, offset: usize, value: T) -> Result<(), Error> {
        let word = self.at::<T>(offset)?;
        // SAFETY: The word is inside of the mapping, and aligned.
        unsafe { ptr::write_volatile(word, value) };
        Ok(())
    }

    /// Loads `bytes.len()` bytes from `offset` on, byte by byte.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.load(offset.saturating_add(index))?;
        }
        Ok(())
    }

    /// Stores `bytes` from `offset` on, byte by byte.
    ///
    /// # Errors
    ///
    /// [`Error::OutsideMapping`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        for (index, byte) in bytes.iter().enumerate() {
            self.store(offset.saturating_add(index), *byte)?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is this object's own, and no reference into it was ever given out.
        let unmapped = unsafe { munmap(self.address, self.length) };
        debug_assert!(unmapped.is_ok(), "munmap of a whole mapping does not fail");
    }
}
