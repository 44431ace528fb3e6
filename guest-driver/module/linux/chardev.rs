// SPDX-License-Identifier: GPL-2.0

//! Character devices: registration with the misc class, and file operations in safe Rust.
//!
//! The kernel crate's `MiscDevice` lacks most of the operations that this driver has.

use core::{marker::PhantomData, mem, ptr, ptr::NonNull};

use kernel::{
    bindings, device,
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
        VDMA_IOCB_APPEND, VDMA_IOCB_DSYNC, VDMA_IOCB_HIPRI, VDMA_IOCB_NOWAIT, VDMA_O_NONBLOCK,
        thp_get_unmapped_area, vdma_uring_file,
    },
    call_marker::CallMarker,
    iov_iter::IovIter,
    uring_cmd::{UringResult, UringSubmission},
    vma::{NewMapping, SharedSpace, SpaceGuard},
};

/// What a read or write returns to the kernel. Only a [`Kiocb`] makes one, of the call that it
/// belongs to.
pub(crate) struct IoResult<'a>(isize, CallMarker<'a>);

/// What the caller of read or write wants.
///
/// # Invariants
///
/// `raw` is the `kiocb` of the call, which has not been completed, and which nothing else uses.
/// `limit` is the number of bytes that the caller gave memory for.
pub(crate) struct Kiocb<'a> {
    raw: NonNull<bindings::kiocb>,
    limit: u32,
    _call: CallMarker<'a>,
}

impl<'a> Kiocb<'a> {
    /// Byte of the file at which to begin.
    #[inline]
    pub(crate) fn position(&self) -> u64 {
        // SAFETY: Valid by the type's invariant; the kernel has checked that it is not negative.
        unsafe { (*self.raw.as_ptr()).ki_pos as u64 }
    }

    #[inline]
    fn has_flag(&self, flag: c_int) -> bool {
        // SAFETY: Valid by the type's invariant.
        unsafe { (*self.raw.as_ptr()).ki_flags & flag != 0 }
    }

    /// Whether the call may not wait: `IOCB_NOWAIT`.
    #[inline]
    pub(crate) fn no_wait(&self) -> bool {
        self.has_flag(VDMA_IOCB_NOWAIT)
    }

    /// Whether the file is non-blocking: `O_NONBLOCK`.
    #[inline]
    pub(crate) fn non_blocking(&self) -> bool {
        // SAFETY: Valid by the type's invariant, and so is the file that the call is made on.
        unsafe { (*(*self.raw.as_ptr()).ki_filp).f_flags & VDMA_O_NONBLOCK != 0 }
    }

    /// Whether the caller polls for the completion: `IOCB_HIPRI`.
    #[inline]
    pub(crate) fn polled(&self) -> bool {
        self.has_flag(VDMA_IOCB_HIPRI)
    }

    /// Whether a write begins at the end of the file, wherever the position is: `IOCB_APPEND`.
    #[inline]
    pub(crate) fn appends(&self) -> bool {
        self.has_flag(VDMA_IOCB_APPEND)
    }

    /// Whether a write has to be durable when it completes: `IOCB_DSYNC`, for all of `O_DSYNC`,
    /// `O_SYNC`, `RWF_DSYNC` and `RWF_SYNC`.
    #[inline]
    pub(crate) fn synchronous(&self) -> bool {
        self.has_flag(VDMA_IOCB_DSYNC)
    }

    /// Ends the call: with the bytes that were moved, at most as many as the caller gave memory
    /// for, by which the position advances, or an error.
    #[inline]
    pub(crate) fn finish(self, result: Result<usize>) -> IoResult<'a> {
        let value = match result {
            Ok(bytes) => {
                let bytes = bytes.min(self.limit as usize);
                // SAFETY: Valid by the type's invariant.
                unsafe { (*self.raw.as_ptr()).ki_pos += bytes as i64 };
                bytes as isize
            }
            Err(error) => error.to_errno() as isize,
        };
        IoResult(value, PhantomData)
    }

    /// The means to complete the call later, and to return from it before; or the `kiocb` back, if
    /// the caller waits for it to return.
    #[inline]
    pub(crate) fn into_async(self) -> Result<(AsyncKiocb, QueuedKiocb<'a>), Self> {
        // SAFETY: Valid by the type's invariant.
        if unsafe { (*self.raw.as_ptr()).ki_complete.is_none() } {
            return Err(self);
        }
        // INVARIANT: The `kiocb` has a completion function, and is the result's alone. The limit is
        // that of the call.
        let caller = AsyncKiocb {
            raw: self.raw,
            limit: self.limit,
        };
        let queued = QueuedKiocb {
            raw: self.raw,
            _call: PhantomData,
        };
        Ok((caller, queued))
    }
}

/// A call of read or write that is completed later: once, at the latest when this is dropped, with
/// `EIO` then.
///
/// # Invariants
///
/// The `kiocb` has a completion function, has not been completed, and its call has returned, or
/// will return, that it was queued. `limit` is the number of bytes that the caller gave memory for.
pub(crate) struct AsyncKiocb {
    raw: NonNull<bindings::kiocb>,
    limit: u32,
}

// SAFETY: A kiocb may be completed in any context.
unsafe impl Send for AsyncKiocb {}

impl AsyncKiocb {
    /// Reports the result, at most the bytes that the caller gave memory for, and moves the
    /// position. Any context.
    #[inline]
    pub(crate) fn complete(self, result: Result<usize>) {
        let Self { raw, limit } = self;
        mem::forget(self);
        // SAFETY: `self`, which ends here, was not completed, by its invariant.
        unsafe { complete(raw, result.map(|bytes| bytes.min(limit as usize))) };
    }
}

impl Drop for AsyncKiocb {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: `self`, which ends here, was not completed, by its invariant.
        unsafe { complete(self.raw, Err(EIO)) };
    }
}

/// # Safety
///
/// `raw` is as the invariant of [`AsyncKiocb`] says, until this function.
unsafe fn complete(raw: NonNull<bindings::kiocb>, result: Result<usize>) {
    let kiocb = raw.as_ptr();
    let value = match result {
        Ok(bytes) => {
            // SAFETY: The caller vouches for the kiocb, whose position is the driver's until it is
            // completed.
            unsafe { (*kiocb).ki_pos += bytes as i64 };
            bytes as c_long
        }
        Err(error) => error.to_errno() as c_long,
    };
    // SAFETY: The caller vouches for the kiocb, in which the function does not change.
    if let Some(complete) = unsafe { (*kiocb).ki_complete } {
        // SAFETY: The kiocb was not completed before, and is not used afterwards.
        unsafe { complete(kiocb, value) };
    }
}

/// The rest of a call of read or write whose [`AsyncKiocb`] is elsewhere: it may be complete by
/// now.
pub(crate) struct QueuedKiocb<'a> {
    /// Compared only.
    raw: NonNull<bindings::kiocb>,
    _call: CallMarker<'a>,
}

impl<'a> QueuedKiocb<'a> {
    /// Returns from the call, which completes later, or has completed.
    #[inline]
    pub(crate) fn queued(self) -> IoResult<'a> {
        IoResult(EIOCBQUEUED.to_errno() as isize, PhantomData)
    }

    /// Returns `error` from the call, if `caller` is what it was to be completed with. Otherwise it
    /// has been, or will be.
    pub(crate) fn failed(self, error: Error, caller: Option<AsyncKiocb>) -> IoResult<'a> {
        match caller {
            Some(caller) if caller.raw == self.raw => {
                mem::forget(caller);
                IoResult(error.to_errno() as isize, PhantomData)
            }
            _ => self.queued(),
        }
    }
}

/// A file that is being opened.
pub(crate) struct Opening<'a> {
    inode: *mut bindings::inode,
    file: *mut bindings::file,
    space: Option<SpaceGuard>,
    _call: CallMarker<'a>,
}

impl Opening<'_> {
    /// Whether the file is opened for reading, and for writing.
    pub(crate) fn access(&self) -> (bool, bool) {
        // SAFETY: The file is valid during `->open`.
        let mode = unsafe { (*self.file).f_mode };
        (mode & VDMA_FMODE_READ != 0, mode & VDMA_FMODE_WRITE != 0)
    }

    /// Makes the mappings of the file part of `space`, until it is released. Once: `EBUSY`. May
    /// sleep.
    pub(crate) fn share_mappings(&mut self, space: &Arc<SharedSpace>) -> Result {
        if self.space.is_some() {
            return Err(EBUSY);
        }
        // SAFETY: These are the arguments of `->open`, during the call. The guard is dropped when
        // the file is released, or opening it fails.
        self.space = Some(unsafe { space.adopt(self.inode, self.file) });
        Ok(())
    }
}

/// A call of poll(2).
pub(crate) struct Poll<'a> {
    file: &'a File,
    table: PollTable<'a>,
}

impl Poll<'_> {
    /// Has the caller woken when `source` is notified.
    pub(crate) fn wait_for(&self, source: &PollCondVar) {
        self.table.register_wait(self.file, source);
    }
}

/// The result of poll(2).
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
    fn map(&self, mapping: NewMapping<'_, Self>) -> Result;
}

/// The operations of an open file.
pub(crate) trait FileOperations: Mmap {
    /// What the device node stands for.
    type Device: Send + Sync + 'static;

    /// Where the table of the file's operations is kept.
    fn table() -> &'static Table<Self>;

    /// Opens the device.
    fn open(device: Arc<Self::Device>, opening: &mut Opening<'_>) -> Result<Self>;

    /// Moves up to the length of `iter` from the device to it.
    fn read<'a>(&self, kiocb: Kiocb<'a>, iter: IovIter<'_>) -> IoResult<'a>;

    /// Moves up to the length of `iter` from it to the device.
    fn write<'a>(&self, kiocb: Kiocb<'a>, iter: IovIter<'_>) -> IoResult<'a>;

    /// Bytes from the beginning to the end, for `lseek`.
    fn size(&self) -> u64;

    /// Makes durable what was completed before.
    fn sync(&self) -> Result;

    /// Any other call.
    fn ioctl(&self, command: u32, argument: usize) -> Result<isize>;

    /// A command of io_uring.
    fn command<'a>(&self, submission: UringSubmission<'a>) -> UringResult<'a>;

    /// Completes requests that the device has used, and returns how many. Called again and again by
    /// a task that waits.
    fn iopoll(&self) -> usize;

    /// Whether reads and writes would have to wait.
    fn poll(&self, poll: &Poll<'_>) -> Readiness;

    /// Lines for `/proc/PID/fdinfo/FD`.
    fn show(&self, out: &SeqFile);
}

/// The function pointers for the files of one kind.
struct Operations(bindings::file_operations);

// SAFETY: The table is only read once it is in place.
unsafe impl Send for Operations {}
// SAFETY: A shared reference only reads the table.
unsafe impl Sync for Operations {}

/// The place of the table of operations of files with a `T`, in a `static`. It has to outlive them,
/// and is part of the module, which they keep loaded through the table's `owner`.
///
/// # Invariants
///
/// The table, if there is one, is that of files with a `T`.
pub(crate) struct Table<T>(SetOnce<Operations>, PhantomData<fn(T)>);

impl<T: FileOperations> Table<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: There is no table yet.
        Self(SetOnce::new(), PhantomData)
    }
}

/// Puts the table for `T` in place. Once, when the module is loaded.
pub(crate) fn install<T: FileOperations>(module: &'static ThisModule) {
    // INVARIANT: The functions are those for `T`.
    T::table().0.populate(Operations(bindings::file_operations {
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

/// A device node in `/dev` whose files have a `T`; dropping it removes the node. Files that are
/// open stay open.
///
/// # Invariants
///
/// `misc` is registered, and begins the object.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct DeviceNode<T: FileOperations> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    device: Arc<T::Device>,
    _name: CString,
}

// SAFETY: Nothing can be done with a shared reference but opening, which the misc class serializes.
unsafe impl<T: FileOperations> Sync for DeviceNode<T> {}
// SAFETY: A node may be removed by any task.
unsafe impl<T: FileOperations> Send for DeviceNode<T> {}

impl<T: FileOperations> DeviceNode<T> {
    /// Creates `/dev/NAME` for `device`, below `parent`, of which the node holds a reference.
    /// `EINVAL` before [`install`].
    pub(crate) fn new<'a>(
        name: CString,
        device: Arc<T::Device>,
        parent: &'a device::Device,
    ) -> impl PinInit<Self, Error> + use<'a, T> {
        let name_pointer = name.as_ptr();
        // The device first: the node can be opened before registering has returned.
        // INVARIANT: The structure is registered last.
        try_pin_init!(Self {
            device,
            _name: name,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let operations = T::table().0.as_ref().ok_or(EINVAL)?;
                // SAFETY: `slot` is valid for writes.
                unsafe {
                    slot.write(bindings::miscdevice {
                        minor: bindings::MISC_DYNAMIC_MINOR as c_int,
                        name: name_pointer.cast(),
                        fops: ptr::from_ref(&operations.0),
                        // The type is a transparent wrapper.
                        parent: ptr::from_ref(parent).cast_mut().cast(),
                        ..Default::default()
                    })
                };
                // SAFETY: The structure and the name are in place until `drop` deregisters it. The
                // parent is borrowed by the initializer, and the call takes a reference to it.
                kernel::error::to_result(unsafe { bindings::misc_register(slot) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl<T: FileOperations> PinnedDrop for DeviceNode<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The device was registered when this object was made. Opens that are under way
        // hold the lock that this takes.
        unsafe { bindings::misc_deregister(self.misc.get()) }
    }
}

/// What `private_data` of an open file points at.
#[repr(C)]
struct Opened<T> {
    /// First, so that it is where mappings find it: see `vma`.
    state: T,
    _space: Option<SpaceGuard>,
}

/// The operations of an open file.
///
/// # Safety
///
/// `file` has gone through `open::<T>` and not through `release::<T>`.
#[inline]
unsafe fn operations<'a, T>(file: *mut bindings::file) -> &'a T {
    // SAFETY: `open` has put an `Opened<T>` there, by the contract above.
    unsafe { &(*(*file).private_data.cast::<Opened<T>>()).state }
}

unsafe extern "C" fn open<T: FileOperations>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    kernel::error::from_result(|| {
        // SAFETY: The misc class passes the registered structure, which cannot go while it opens.
        let misc = unsafe { (*file).private_data };
        // SAFETY: It begins a `DeviceNode`, whose device was initialized before it was registered;
        // nodes with `T`'s operations are those for `T`.
        let device = unsafe { &(*misc.cast::<DeviceNode<T>>()).device };
        let mut opening = Opening {
            inode,
            file,
            space: None,
            _call: PhantomData,
        };
        let opened = T::open(device.clone(), &mut opening).and_then(|state| {
            let opened = Opened {
                state,
                _space: opening.space.take(),
            };
            Ok(KBox::new(opened, GFP_KERNEL_ACCOUNT)?)
        });
        // SAFETY: The file is not in use yet.
        let file = unsafe { &mut *file };
        match opened {
            Ok(opened) => {
                file.private_data = KBox::into_raw(opened).cast();
                file.f_mode |= VDMA_FMODE_NOWAIT | VDMA_FMODE_CAN_ODIRECT;
                Ok(0)
            }
            Err(error) => {
                // The inode of the shared space may go with the guard.
                // SAFETY: The inode is valid during `->open`.
                file.f_mapping = unsafe { (*inode).i_mapping };
                Err(error)
            }
        }
    })
}

unsafe extern "C" fn release<T: FileOperations>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `open` has put the box there, and release is the last call on a file.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<Opened<T>>()) });
    0
}

/// Runs read or write, and returns what the kernel expects.
///
/// # Safety
///
/// These are the arguments of `->read_iter` or `->write_iter` of an open file with a `T`.
#[inline]
unsafe fn run_io<T: FileOperations>(
    kiocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
    io: impl for<'a> FnOnce(&T, Kiocb<'a>, IovIter<'_>) -> IoResult<'a>,
) -> isize {
    let Some(raw) = NonNull::new(kiocb) else {
        return EINVAL.to_errno() as isize;
    };
    // SAFETY: The caller vouches for the kiocb, which has the file that the call is made on.
    let file = unsafe { operations::<T>((*kiocb).ki_filp) };
    // SAFETY: The caller vouches for the iterator, which is this call's.
    let iter = unsafe { IovIter::from_raw(iter) };
    // INVARIANT: The kiocb is the call's, and was not completed. The kernel limits the memory of a
    // call to less than 2 GiB.
    let kiocb = Kiocb {
        raw,
        limit: u32::try_from(iter.len()).unwrap_or(u32::MAX),
        _call: PhantomData,
    };
    io(file, kiocb, iter).0
}

unsafe extern "C" fn read_iter<T: FileOperations>(
    kiocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
) -> isize {
    // SAFETY: The kernel calls operations on open files, with valid arguments.
    unsafe { run_io::<T>(kiocb, iter, |file, kiocb, iter| file.read(kiocb, iter)) }
}

unsafe extern "C" fn write_iter<T: FileOperations>(
    kiocb: *mut bindings::kiocb,
    iter: *mut bindings::iov_iter,
) -> isize {
    // SAFETY: The kernel calls operations on open files, with valid arguments.
    unsafe { run_io::<T>(kiocb, iter, |file, kiocb, iter| file.write(kiocb, iter)) }
}

unsafe extern "C" fn llseek<T: FileOperations>(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    whence: c_int,
) -> bindings::loff_t {
    // SAFETY: The kernel calls operations on open files.
    let size = unsafe { operations::<T>(file) }.size();
    // SAFETY: The file is open.
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
pub(super) unsafe extern "C" fn mmap_prepare<T: Mmap>(
    description: *mut bindings::vm_area_desc,
) -> c_int {
    // SAFETY: The kernel calls operations on open files; the description is valid during the call.
    // A `T` begins what `private_data` points at, here and in `anon_file`.
    let file = unsafe { &*(*(*description).file).private_data.cast::<T>() };
    kernel::error::from_result(|| {
        // SAFETY: This is the argument of `->mmap_prepare`, during the call, of a file with a `T`.
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
    let Some(raw) = NonNull::new(raw) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The command is valid during the call, and has the open file that the call is made on.
    let file = unsafe { operations::<T>(vdma_uring_file(raw.as_ptr())) };
    // SAFETY: These are the arguments of `->uring_cmd`.
    let submission = unsafe { UringSubmission::from_raw(raw, issue_flags) };
    file.command(submission).into_raw()
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
