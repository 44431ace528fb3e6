// SPDX-License-Identifier: GPL-2.0

//! Character devices: registration with the misc class, and file operations in safe Rust.
//!
//! The kernel crate's `MiscDevice` lacks most of the operations that this driver has.

use core::{marker::PhantomData, ptr, ptr::NonNull};

use kernel::{
    bindings,
    ffi::{c_int, c_long, c_uint, c_ulong},
    fs::File,
    prelude::*,
    seq_file::SeqFile,
    str::CString,
    sync::{
        Arc, SetOnce,
        poll::{PollCondVar, PollTable},
    },
    types::Opaque,
};

use crate::linux::{
    bindings::{
        VDMA_FMODE_CAN_ODIRECT, VDMA_FMODE_NOWAIT, VDMA_FMODE_READ, VDMA_FMODE_WRITE,
        VDMA_IOCB_HIPRI, VDMA_IOCB_NOWAIT, thp_get_unmapped_area, vdma_uring_file,
    },
    iov_iter::IovIter,
    uring_cmd::Submission,
    vma::NewMapping,
};

/// How a read or write that did not fail ended.
pub(crate) enum Io {
    /// Done: so many bytes.
    Done(usize),
    /// Queued; the [`AsyncKiocb`] is completed later.
    Queued,
}

/// What the caller of read or write wants.
pub(crate) struct Kiocb<'a> {
    raw: *mut bindings::kiocb,
    _call: PhantomData<&'a mut bindings::kiocb>,
}

impl Kiocb<'_> {
    /// Byte of the file at which to begin.
    pub(crate) fn position(&self) -> u64 {
        // SAFETY: Valid during the call; the kernel has checked that it is not negative.
        unsafe { (*self.raw).ki_pos as u64 }
    }

    /// Whether the call may not wait: `IOCB_NOWAIT`.
    pub(crate) fn no_wait(&self) -> bool {
        // SAFETY: Valid during the call.
        unsafe { (*self.raw).ki_flags & VDMA_IOCB_NOWAIT != 0 }
    }

    /// Whether the caller wants to look for the completion: `IOCB_HIPRI`.
    pub(crate) fn polled(&self) -> bool {
        // SAFETY: Valid during the call.
        unsafe { (*self.raw).ki_flags & VDMA_IOCB_HIPRI != 0 }
    }

    /// The means to complete the call later, unless the caller waits for it to return.
    ///
    /// When the result is not completed, the call has to return something else than [`Io::Queued`].
    pub(crate) fn asynchronous(&self) -> Option<AsyncKiocb> {
        // SAFETY: Valid during the call.
        let is_sync = unsafe { (*self.raw).ki_complete.is_none() };
        // SAFETY: An iocb is not null.
        (!is_sync).then(|| AsyncKiocb(unsafe { NonNull::new_unchecked(self.raw) }))
    }
}

/// A call that has been queued. It stays valid until it is completed, which happens once.
pub(crate) struct AsyncKiocb(NonNull<bindings::kiocb>);

// SAFETY: An iocb may be completed in any context.
unsafe impl Send for AsyncKiocb {}

impl AsyncKiocb {
    /// Reports the result, and moves the position. Any context.
    pub(crate) fn complete(self, result: Result<usize>) {
        // SAFETY: Nobody else uses the iocb between queueing and completion.
        let iocb = unsafe { &mut *self.0.as_ptr() };
        let value = match result {
            Ok(bytes) => {
                iocb.ki_pos += bytes as i64;
                bytes as c_long
            }
            Err(error) => error.to_errno() as c_long,
        };
        if let Some(complete) = iocb.ki_complete {
            // SAFETY: The iocb was not completed before, and `self` ends here.
            unsafe { complete(self.0.as_ptr(), value) };
        }
    }
}

/// A file that is being opened.
pub(crate) struct Opening {
    /// Arguments of `->open`.
    pub(crate) inode: *mut bindings::inode,
    /// Arguments of `->open`.
    pub(crate) file: *mut bindings::file,
}

impl Opening {
    /// Whether the file is opened for reading, and for writing.
    pub(crate) fn access(&self) -> (bool, bool) {
        // SAFETY: The file is valid during `->open`.
        let mode = unsafe { (*self.file).f_mode };
        (mode & VDMA_FMODE_READ != 0, mode & VDMA_FMODE_WRITE != 0)
    }
}

/// What `poll` asks.
pub(crate) struct Poll<'a> {
    file: &'a File,
    table: PollTable<'a>,
}

impl Poll<'_> {
    /// Has the caller told when `source` is notified.
    pub(crate) fn wait_for(&self, source: &PollCondVar) {
        self.table.register_wait(self.file, source);
    }
}

/// What `poll` answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Reads and writes would have to wait.
    Busy,
    /// Reads and writes would not have to wait.
    Ready,
    /// Reads and writes will fail.
    Dead,
}

/// Files that can be mapped.
pub(crate) trait Mmap: Sized + Send + Sync + 'static {
    /// Maps the file.
    fn map(&self, mapping: NewMapping<'_>) -> Result;
}

/// The operations of an open file.
pub(crate) trait FileOperations: Mmap {
    /// What the device node stands for.
    type Device: Send + Sync + 'static;

    /// Opens the device.
    fn open(device: Arc<Self::Device>, opening: &Opening) -> Result<Self>;

    /// Moves up to the length of `buffers` from the device to them.
    fn read(&self, iocb: Kiocb<'_>, buffers: IovIter<'_>) -> Result<Io>;

    /// Moves up to the length of `buffers` from them to the device.
    fn write(&self, iocb: Kiocb<'_>, buffers: IovIter<'_>) -> Result<Io>;

    /// Bytes from the beginning to the end, for `lseek`.
    fn size(&self) -> u64;

    /// Makes durable what was completed before.
    fn sync(&self) -> Result;

    /// Any other call.
    fn ioctl(&self, command: u32, argument: usize) -> Result<isize>;

    /// A command of io_uring. `Ok` when it was queued.
    fn command(&self, submission: &Submission) -> Result;

    /// Completes requests that the device has used, and returns how many. Called again and again by a
    /// task that waits.
    fn iopoll(&self) -> usize;

    /// Whether reads and writes would have to wait.
    fn poll(&self, poll: &Poll<'_>) -> Readiness;

    /// Lines for `/proc/PID/fdinfo/FD`.
    fn show(&self, out: &SeqFile);
}

/// The table of function pointers for the files of one kind.
pub(crate) struct Operations(bindings::file_operations);

// SAFETY: The table is only read once it is in place.
unsafe impl Send for Operations {}
// SAFETY: As above.
unsafe impl Sync for Operations {}

/// The module has one kind of files. The table has to outlive them, and is part of the module, which
/// they keep loaded through the table's `owner`.
static OPERATIONS: SetOnce<Operations> = SetOnce::new();

impl Operations {
    /// Puts the table for `T` in place. Once, when the module is loaded.
    pub(crate) fn install<T: FileOperations>(module: &'static ThisModule) {
        OPERATIONS.populate(Self(bindings::file_operations {
            owner: module.as_ptr(),
            open: Some(open::<T>),
            release: Some(release::<T>),
            read_iter: Some(read_iter::<T>),
            write_iter: Some(write_iter::<T>),
            splice_read: Some(bindings::copy_splice_read),
            splice_write: Some(bindings::iter_file_splice_write),
            llseek: Some(llseek::<T>),
            fsync: Some(fsync::<T>),
            mmap_prepare: Some(mmap_prepare::<T>),
            get_unmapped_area: Some(thp_get_unmapped_area),
            poll: Some(poll::<T>),
            iopoll: Some(iopoll::<T>),
            uring_cmd: Some(uring_cmd::<T>),
            unlocked_ioctl: Some(ioctl::<T>),
            compat_ioctl: bindings::compat_ptr_ioctl,
            show_fdinfo: Some(show_fdinfo::<T>),
            ..Default::default()
        }));
    }
}

/// A device node in `/dev`; dropping it removes the node. Files that are open stay open.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct Registration<D: Send + Sync + 'static> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    device: Arc<D>,
    _name: CString,
}

// SAFETY: Nothing can be done with a shared reference but opening, which the misc class serializes.
unsafe impl<D: Send + Sync> Sync for Registration<D> {}
// SAFETY: A node may be removed by any task.
unsafe impl<D: Send + Sync> Send for Registration<D> {}

impl<D: Send + Sync> Registration<D> {
    /// Creates `/dev/NAME` for `device`, below `parent`.
    ///
    /// # Safety
    ///
    /// `parent` outlives the registration, and [`Operations::install`] was called for operations on
    /// `D`.
    pub(crate) unsafe fn new(
        name: CString,
        device: Arc<D>,
        parent: *mut bindings::device,
    ) -> impl PinInit<Self, Error> {
        let name_pointer = name.as_ptr();
        // The device first: the node can be opened before registering has returned.
        try_pin_init!(Self {
            device,
            _name: name,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let operations = OPERATIONS.as_ref().ok_or(EINVAL)?;
                // SAFETY: `slot` is valid for writes.
                unsafe {
                    slot.write(bindings::miscdevice {
                        minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                        name: name_pointer.cast(),
                        fops: ptr::from_ref(&operations.0),
                        parent,
                        ..Default::default()
                    })
                };
                // SAFETY: The structure and the name are in place until `drop` deregisters it.
                kernel::error::to_result(unsafe { bindings::misc_register(slot) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl<D: Send + Sync> PinnedDrop for Registration<D> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The device was registered when this object was made. Opens that are under way hold
        // the lock that this takes.
        unsafe { bindings::misc_deregister(self.misc.get()) }
    }
}

/// The operations of an open file.
///
/// # Safety
///
/// `file` has gone through `open::<T>` and not through `release::<T>`.
unsafe fn operations<'a, T>(file: *mut bindings::file) -> &'a T {
    // SAFETY: `open` has put a `T` there, by the contract above.
    unsafe { &*(*file).private_data.cast::<T>() }
}

unsafe extern "C" fn open<T: FileOperations>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    kernel::error::from_result(|| {
        // SAFETY: The misc class passes the registered structure, which cannot go while it opens.
        let misc = unsafe { (*file).private_data };
        // SAFETY: It is the first field of a `Registration`, whose device was initialized before the node
        // was registered: nodes of `T`'s operations are registered only for `T::Device`.
        let device = unsafe { &(*misc.cast::<Registration<T::Device>>()).device };
        let state = T::open(device.clone(), &Opening { inode, file })?;
        let state = KBox::new(state, GFP_KERNEL)?;
        // SAFETY: The file is not in use yet.
        let file = unsafe { &mut *file };
        file.private_data = KBox::into_raw(state).cast();
        file.f_mode |= VDMA_FMODE_NOWAIT | VDMA_FMODE_CAN_ODIRECT;
        Ok(0)
    })
}

unsafe extern "C" fn release<T: FileOperations>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `open` has put the box there, and release is the last call on a file.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<T>()) });
    0
}

/// Runs read or write, and turns its outcome into what the kernel expects.
fn run_io(iocb: *mut bindings::kiocb, io: impl FnOnce(Kiocb<'_>) -> Result<Io>) -> isize {
    match io(Kiocb {
        raw: iocb,
        _call: PhantomData,
    }) {
        Ok(Io::Done(bytes)) => {
            // SAFETY: The call is not over and was not queued, so the iocb is still ours.
            unsafe { (*iocb).ki_pos += bytes as i64 };
            bytes as isize
        }
        Ok(Io::Queued) => EIOCBQUEUED.to_errno() as isize,
        Err(error) => error.to_errno() as isize,
    }
}

unsafe extern "C" fn read_iter<T: FileOperations>(
    iocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
) -> isize {
    // SAFETY: The kernel calls operations on open files, with valid arguments.
    let file = unsafe { operations::<T>((*iocb).ki_filp) };
    // SAFETY: As above.
    let buffers = unsafe { IovIter::from_raw(iter) };
    run_io(iocb, |iocb| file.read(iocb, buffers))
}

unsafe extern "C" fn write_iter<T: FileOperations>(
    iocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
) -> isize {
    // SAFETY: The kernel calls operations on open files, with valid arguments.
    let file = unsafe { operations::<T>((*iocb).ki_filp) };
    // SAFETY: As above.
    let buffers = unsafe { IovIter::from_raw(iter) };
    run_io(iocb, |iocb| file.write(iocb, buffers))
}

unsafe extern "C" fn llseek<T: FileOperations>(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    whence: c_int,
) -> bindings::loff_t {
    // SAFETY: The kernel calls operations on open files.
    let size = unsafe { operations::<T>(file) }.size();
    // SAFETY: As above.
    unsafe { bindings::fixed_size_llseek(file, offset, whence, size as i64) }
}

unsafe extern "C" fn fsync<T: FileOperations>(
    file: *mut bindings::file,
    _start: bindings::loff_t,
    _end: bindings::loff_t,
    _datasync: c_int,
) -> c_int {
    // SAFETY: The kernel calls operations on open files.
    let file = unsafe { operations::<T>(file) };
    kernel::error::from_result(|| file.sync().map(|()| 0))
}

/// `->mmap_prepare` of files that can be mapped.
pub(crate) unsafe extern "C" fn mmap_prepare<T: Mmap>(
    description: *mut bindings::vm_area_desc,
) -> c_int {
    // SAFETY: The kernel calls operations on open files; the description is valid during the call.
    let file = unsafe { operations::<T>((*description).file) };
    kernel::error::from_result(|| {
        // SAFETY: As above.
        file.map(unsafe { NewMapping::from_raw(description) })
            .map(|()| 0)
    })
}

unsafe extern "C" fn poll<T: FileOperations>(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: The kernel calls operations on open files.
    let state = unsafe { operations::<T>(file) };
    // SAFETY: File and table are valid during the call, and position locks are not held.
    let poll = unsafe {
        Poll {
            file: File::from_raw_file(file),
            table: PollTable::from_raw(table),
        }
    };
    let both = bindings::POLLIN | bindings::POLLRDNORM | bindings::POLLOUT | bindings::POLLWRNORM;
    match state.poll(&poll) {
        Readiness::Busy => 0,
        Readiness::Ready => both,
        Readiness::Dead => both | bindings::POLLERR | bindings::POLLHUP,
    }
}

unsafe extern "C" fn iopoll<T: FileOperations>(
    iocb: *mut bindings::kiocb,
    _batch: *mut bindings::io_comp_batch,
    _flags: c_uint,
) -> c_int {
    // SAFETY: The kernel calls operations on open files, with valid arguments.
    let file = unsafe { operations::<T>((*iocb).ki_filp) };
    file.iopoll().try_into().unwrap_or(c_int::MAX)
}

unsafe extern "C" fn uring_cmd<T: FileOperations>(
    raw: *mut bindings::io_uring_cmd,
    issue_flags: c_uint,
) -> c_int {
    // SAFETY: The command is valid during the call.
    let file = unsafe { operations::<T>(vdma_uring_file(raw)) };
    // SAFETY: As above.
    let Some(submission) = (unsafe { Submission::from_raw(raw, issue_flags) }) else {
        return EINVAL.to_errno();
    };
    match file.command(&submission) {
        Ok(()) => EIOCBQUEUED.to_errno(),
        Err(error) => error.to_errno(),
    }
}

unsafe extern "C" fn ioctl<T: FileOperations>(
    file: *mut bindings::file,
    command: c_uint,
    argument: c_ulong,
) -> c_long {
    // SAFETY: The kernel calls operations on open files.
    let file = unsafe { operations::<T>(file) };
    match file.ioctl(command, argument) {
        Ok(value) => value as c_long,
        Err(error) => error.to_errno() as c_long,
    }
}

unsafe extern "C" fn show_fdinfo<T: FileOperations>(
    seq: *mut bindings::seq_file,
    file: *mut bindings::file,
) {
    // SAFETY: The kernel calls operations on open files.
    let file = unsafe { operations::<T>(file) };
    // SAFETY: The sequence file is valid during the call.
    file.show(unsafe { SeqFile::from_raw(seq) });
}
