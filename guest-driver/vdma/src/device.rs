use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use rustix::ioctl::{Getter, Opcode, Setter, Updater, ioctl};
use vdma_protocol::{
    CACHE_UNCACHED, CACHE_WRITE_BACK, CACHE_WRITE_COMBINING, Choice, DeviceInfo, ExplainedPage,
    Explanation, IOCTL_CACHE_MODE, IOCTL_DEVICE_STATISTICS, IOCTL_EVENTFD, IOCTL_EXPLAIN,
    IOCTL_FILE_STATISTICS, IOCTL_INFO, IOCTL_MAP_MODE, MAP_EAGER, MAP_LAZY, NO_FILE, Statistics,
};

use crate::{Error, Mapping};

/// How mappings of device memory are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapMode {
    /// All at once.
    Eager,
    /// What is touched, when it is touched; in huge pages where that is possible.
    Lazy,
}

/// The cache attribute of mappings of device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As ordinary memory.
    WriteBack,
    /// Stores are gathered; loads are not cached.
    WriteCombining,
    /// Neither loads nor stores are cached.
    Uncached,
}

/// Runs an ioctl that takes a number.
fn choose<const OPCODE: Opcode>(file: BorrowedFd<'_>, value: u32) -> io::Result<()> {
    let choice = Choice { value, reserved: 0 };
    // SAFETY: The opcodes used here are declared, in `vdma_protocol`, as reading a `Choice`.
    let setter = unsafe { Setter::<OPCODE, Choice>::new(choice) };
    // SAFETY: The structure of the call stays borrowed until it returns.
    unsafe { ioctl(file, setter) }.map_err(Into::into)
}

/// An open vdma device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    info: DeviceInfo,
}

/// Runs an ioctl that fills a `T`.
fn get<const OPCODE: Opcode, T>(file: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: The opcodes used here are declared, in `vdma_protocol`, with the size of the
    // structure that the driver fills, which is made of integers only.
    let getter = unsafe { Getter::<OPCODE, T>::new() };
    // SAFETY: The structure of the call stays borrowed until it returns.
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

    pub(crate) fn error(&self, call: &'static str) -> impl FnOnce(io::Error) -> Error + '_ {
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
        Mapping::new(self.file.as_fd(), offset, length, true).map_err(self.error("mmap"))
    }

    /// Chooses how later mappings of this open device are filled.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn set_map_mode(&self, mode: MapMode) -> Result<(), Error> {
        let mode = match mode {
            MapMode::Eager => MAP_EAGER,
            MapMode::Lazy => MAP_LAZY,
        };
        choose::<{ IOCTL_MAP_MODE as Opcode }>(self.file.as_fd(), mode)
            .map_err(self.error("ioctl MAP_MODE"))
    }

    /// Chooses the cache attribute of all mappings of device memory, of all processes.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `EBUSY` while there is a mapping, `EPERM` without `CAP_SYS_ADMIN`.
    pub fn set_cache(&self, cache: Cache) -> Result<(), Error> {
        let cache = match cache {
            Cache::WriteBack => CACHE_WRITE_BACK,
            Cache::WriteCombining => CACHE_WRITE_COMBINING,
            Cache::Uncached => CACHE_UNCACHED,
        };
        choose::<{ IOCTL_CACHE_MODE as Opcode }>(self.file.as_fd(), cache)
            .map_err(self.error("ioctl CACHE_MODE"))
    }

    /// Has `event`, an eventfd, incremented with each transfer or operation of this open device
    /// that ends; `None`: no more.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `EINVAL` for a file that is none.
    pub fn set_event(&self, event: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let number = event
            .and_then(|event| u32::try_from(event.as_raw_fd()).ok())
            .unwrap_or(NO_FILE);
        choose::<{ IOCTL_EVENTFD as Opcode }>(self.file.as_fd(), number)
            .map_err(self.error("ioctl EVENTFD"))
    }

    /// The pages of `memory`, at most 1024 of them, on their way to device memory at `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with `EPERM` without `CAP_SYS_ADMIN`.
    pub fn explain(&self, memory: &mut [u8], offset: u64) -> Result<Vec<ExplainedPage>, Error> {
        let mut pages = vec![ExplainedPage::default(); 1024];
        let mut explanation = Explanation {
            address: memory.as_mut_ptr() as u64,
            length: memory.len() as u64,
            offset,
            pages: pages.as_mut_ptr() as u64,
            capacity: u32::try_from(pages.len()).unwrap_or(0),
            count: 0,
        };
        // SAFETY: The driver reads and writes an `Explanation`, and writes the array behind it;
        // both are borrowed.
        let call =
            unsafe { Updater::<{ IOCTL_EXPLAIN as Opcode }, Explanation>::new(&mut explanation) };
        // SAFETY: The structure of the call stays borrowed until it returns.
        unsafe { ioctl(self.file.as_fd(), call) }
            .map_err(Into::into)
            .map_err(self.error("ioctl EXPLAIN"))?;
        pages.truncate(explanation.count as usize);
        Ok(pages)
    }
}
