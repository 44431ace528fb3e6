use crate::{Error, Mapping};
use rustix::ioctl::{Getter, Opcode, ioctl};
use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};
use vdma_protocol::{
    DeviceInfo, IOCTL_DEVICE_STATISTICS, IOCTL_FILE_STATISTICS, IOCTL_INFO, Statistics,
};

/// An open vdma device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    info: DeviceInfo,
}

/// Runs an ioctl that fills a `T`.
fn get<const OPCODE: Opcode, T>(file: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: The opcodes used here are declared, in `vdma_protocol`, with the size of the structure
    // that the driver fills, which is made of integers only.
    let getter = unsafe { Getter::<OPCODE, T>::new() };
    // SAFETY: As above.
    unsafe { ioctl(file, getter) }.map_err(Into::into)
}

impl Device {
    /// Opens a device node for reading and writing.
    ///
    /// # Errors
    ///
    /// [`Error::Open`]; [`Error::NotVdma`] when the file is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, OpenOptions::new().read(true).write(true))
    }

    /// Opens a device node with options of the caller's choice, such as `O_DIRECT`.
    ///
    /// # Errors
    ///
    /// [`Error::Open`]; [`Error::NotVdma`] when the file is something else.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let file = match options.open(&path) {
            Ok(file) => file,
            Err(cause) => return Err(Error::Open { path, cause }),
        };
        match get::<{ IOCTL_INFO as Opcode }, DeviceInfo>(file.as_fd()) {
            Ok(info) => Ok(Self { file, path, info }),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTTY.raw_os_error()) => {
                Err(Error::NotVdma { path })
            }
            Err(cause) => Err(Error::Call {
                path,
                call: "ioctl INFO",
                cause,
            }),
        }
    }

    fn error(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error + '_ {
        move |cause| Error::Call {
            path: self.path.clone(),
            call,
            cause,
        }
    }

    /// The open file, for reads, writes and everything else that files do.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The device node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the device is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Counts of what went through this open file.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn file_statistics(&self) -> Result<Statistics, Error> {
        get::<{ IOCTL_FILE_STATISTICS as Opcode }, _>(self.file.as_fd())
            .map_err(self.error("ioctl FILE_STATISTICS"))
    }

    /// Counts of what went through the device since the driver was bound to it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn device_statistics(&self) -> Result<Statistics, Error> {
        get::<{ IOCTL_DEVICE_STATISTICS as Opcode }, _>(self.file.as_fd())
            .map_err(self.error("ioctl DEVICE_STATISTICS"))
    }

    /// Maps `length` bytes of device memory at `offset`, a multiple of the page size, into the
    /// process: the BAR itself, so that loads and stores go to the device.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `EINVAL` for a range that leaves device memory, `ENODEV` for a device
    /// without a BAR.
    pub fn map(&self, offset: u64, length: usize) -> Result<Mapping, Error> {
        Mapping::new(self.file.as_fd(), offset, length).map_err(self.error("mmap"))
    }
}
