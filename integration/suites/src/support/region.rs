//! Mapped memory of every kind, as source or target of transfers.

use std::{
    ffi::c_void,
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd as _},
    ptr,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, MprotectFlags, MsyncFlags, ProtFlags},
};

/// A mapping of this process. The kernel and devices may write to it at any time, so it is copied
/// from and to, and no reference into it exists.
pub(crate) struct Region {
    address: *mut u8,
    length: usize,
}

// SAFETY: A mapping belongs to the process, not to a thread, and is only reached by copying.
unsafe impl Send for Region {}
// SAFETY: Copies from several threads at once race like those of the device do, on bytes that Rust
// has no reference to.
unsafe impl Sync for Region {}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl Region {
    /// Private anonymous memory, without huge pages.
    pub(crate) fn anonymous(length: usize) -> Result<Self> {
        let region = Self::anonymous_with(length, MapFlags::PRIVATE).context("mmap")?;
        region.advise(Advice::LinuxNoHugepage)?;
        Ok(region)
    }

    /// Anonymous memory with these flags.
    pub(crate) fn anonymous_with(length: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let address =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), length, READ_WRITE, flags) }?;
        Ok(Self {
            address: address.cast(),
            length,
        })
    }

    /// Private anonymous memory that begins at a multiple of 2 MiB and asks for huge pages.
    pub(crate) fn transparent_huge(length: usize) -> Result<Self> {
        const HUGE: usize = 2 << 20;
        let mut region = Self::anonymous_with(length + HUGE, MapFlags::PRIVATE).context("mmap")?;
        let lead = (region.address as usize).next_multiple_of(HUGE) - region.address as usize;
        region.cut_front(lead)?;
        region.cut_back(length)?;
        region.advise(Advice::LinuxHugepage)?;
        Ok(region)
    }

    /// A file's bytes from `offset` on.
    pub(crate) fn file(
        file: impl AsFd,
        offset: u64,
        length: usize,
        flags: MapFlags,
    ) -> io::Result<Self> {
        Self::file_with(file, offset, length, READ_WRITE, flags)
    }

    /// As [`Region::file`], with these rights.
    pub(crate) fn file_with(
        file: impl AsFd,
        offset: u64,
        length: usize,
        rights: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        // SAFETY: A new mapping at an address of the kernel's choice replaces nothing.
        let address =
            unsafe { rustix::mm::mmap(ptr::null_mut(), length, rights, flags, file, offset) }?;
        Ok(Self {
            address: address.cast(),
            length,
        })
    }

    /// Length of the mapping in bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The address that it begins at.
    pub(crate) fn address(&self) -> usize {
        self.address as usize
    }

    /// The address of the byte at `offset`. What it points at is mapped for as long as the region
    /// is, up to its end.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.address.wrapping_add(offset)
    }

    fn raw(&self) -> *mut c_void {
        self.address.cast()
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Vec<u8>> {
        self.check(&range)?;
        let mut bytes = vec![0; range.len()];
        // SAFETY: The range is mapped; the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.at(range.start), bytes.as_mut_ptr(), range.len()) };
        Ok(bytes)
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.check(&(offset..offset + bytes.len()))?;
        // SAFETY: The range is mapped; the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset), bytes.len()) };
        Ok(())
    }

    fn check(&self, range: &Range<usize>) -> Result<()> {
        ensure!(
            range.start <= range.end && range.end <= self.length,
            "{range:x?} is not inside a region of {:#x} bytes",
            self.length
        );
        Ok(())
    }

    /// `pread` of device or file bytes at `position` into a range of the region.
    pub(crate) fn pread(
        &self,
        file: impl AsFd,
        range: Range<usize>,
        position: u64,
    ) -> Result<io::Result<usize>> {
        self.check(&range)?;
        // SAFETY: The range belongs to this region, into which no reference exists.
        Ok(unsafe { pread(file, self.at(range.start), range.len(), position) })
    }

    /// `pwrite` of a range of the region to device or file bytes at `position`.
    pub(crate) fn pwrite(
        &self,
        file: impl AsFd,
        range: Range<usize>,
        position: u64,
    ) -> Result<io::Result<usize>> {
        self.check(&range)?;
        Ok(pwrite(file, self.at(range.start), range.len(), position))
    }

    /// As [`Region::pread`], of the whole range.
    pub(crate) fn pread_exact(
        &self,
        file: impl AsFd,
        range: Range<usize>,
        position: u64,
    ) -> Result<()> {
        let length = range.len();
        let read = self.pread(file, range, position)?.context("pread")?;
        ensure!(read == length, "{read} of {length} bytes read in one call");
        Ok(())
    }

    /// As [`Region::pwrite`], of the whole range.
    pub(crate) fn pwrite_all(
        &self,
        file: impl AsFd,
        range: Range<usize>,
        position: u64,
    ) -> Result<()> {
        let length = range.len();
        let written = self.pwrite(file, range, position)?.context("pwrite")?;
        ensure!(
            written == length,
            "{written} of {length} bytes written in one call"
        );
        Ok(())
    }

    /// Advises the kernel on the whole mapping.
    pub(crate) fn advise(&self, advice: Advice) -> Result<()> {
        ensure!(
            !matches!(advice, Advice::LinuxDontNeed),
            "that would discard the contents"
        );
        // SAFETY: The mapping is this object's own, and this advice keeps its contents.
        unsafe { rustix::mm::madvise(self.raw(), self.length, advice) }.context("madvise")
    }

    /// Changes the access rights of the whole mapping; copying from or to it needs them.
    pub(crate) fn protect(&self, rights: MprotectFlags) -> Result<()> {
        self.protect_range(0..self.length, rights)
    }

    /// Changes the access rights of a range of whole pages.
    pub(crate) fn protect_range(&self, range: Range<usize>, rights: MprotectFlags) -> Result<()> {
        self.check(&range)?;
        // SAFETY: The mapping is this object's own.
        unsafe { rustix::mm::mprotect(self.at(range.start).cast(), range.len(), rights) }
            .context("mprotect")
    }

    /// Writes changes of a shared file mapping back to the file.
    pub(crate) fn sync(&self) -> Result<()> {
        // SAFETY: The mapping is this object's own.
        unsafe { rustix::mm::msync(self.raw(), self.length, MsyncFlags::SYNC) }.context("msync")
    }

    /// Unmaps all but the first `length` bytes, a multiple of the page size.
    pub(crate) fn cut_back(&mut self, length: usize) -> Result<()> {
        self.check(&(0..length))?;
        let tail = self.length - length;
        self.length = length;
        if tail == 0 {
            return Ok(());
        }
        // SAFETY: The tail was this object's own, and the object does not refer to it any more.
        unsafe { rustix::mm::munmap(self.at(length).cast(), tail) }.context("munmap")
    }

    /// Unmaps the first `length` bytes, a multiple of the page size.
    pub(crate) fn cut_front(&mut self, length: usize) -> Result<()> {
        self.check(&(0..length))?;
        let head = self.raw();
        self.address = self.at(length);
        self.length -= length;
        if length == 0 {
            return Ok(());
        }
        // SAFETY: The head was this object's own, and the object does not refer to it any more.
        unsafe { rustix::mm::munmap(head, length) }.context("munmap")
    }

    /// Resizes the mapping, which may move it, if the kernel allows it.
    pub(crate) fn remap(&mut self, length: usize) -> Result<(), Errno> {
        let flags = rustix::mm::MremapFlags::MAYMOVE;
        // SAFETY: The mapping is this object's own, and no reference into it exists.
        let address = unsafe { rustix::mm::mremap(self.raw(), self.length, length, flags) }?;
        self.address = address.cast();
        self.length = length;
        Ok(())
    }
}

impl Region {
    /// Moves the mapping to another address.
    pub(crate) fn relocate(&mut self) -> Result<()> {
        let place = Self::anonymous(self.length)?;
        let flags = rustix::mm::MremapFlags::MAYMOVE;
        let (from, to, length) = (self.raw(), place.raw(), self.length);
        // SAFETY: Both mappings belong to this function, and no reference into them exists.
        let address = unsafe { rustix::mm::mremap_fixed(from, length, length, flags, to) }
            .context("mremap")?;
        // The kernel has replaced the one mapping by the other.
        std::mem::forget(place);
        self.address = address.cast();
        Ok(())
    }

    /// Splits the region after `length` bytes, a multiple of the page size.
    pub(crate) fn split(self, length: usize) -> Result<(Self, Self)> {
        self.check(&(0..length))?;
        let whole = std::mem::ManuallyDrop::new(self);
        let part = |start: usize, length| Self {
            address: whole.at(start),
            length,
        };
        Ok((part(0, length), part(length, whole.length - length)))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: The mapping is this object's own, and no reference into it exists.
            let unmapped = unsafe { rustix::mm::munmap(self.raw(), self.length) };
            debug_assert!(unmapped.is_ok());
        }
    }
}

/// `pread` to any address, mapped or not.
///
/// # Safety
///
/// Nothing that is mapped in the range is referenced by Rust objects.
pub(crate) unsafe fn pread(
    file: impl AsFd,
    address: *mut u8,
    length: usize,
    position: u64,
) -> io::Result<usize> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: The kernel checks the address; the caller vouches for the memory there.
    let result = unsafe { libc::pread(file, address.cast(), length, position.cast_signed()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `pwrite` from any address, mapped or not.
pub(crate) fn pwrite(
    file: impl AsFd,
    address: *const u8,
    length: usize,
    position: u64,
) -> io::Result<usize> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: The kernel checks the address, and only reads from there.
    let result = unsafe { libc::pwrite(file, address.cast(), length, position.cast_signed()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
