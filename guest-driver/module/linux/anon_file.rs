// SPDX-License-Identifier: GPL-2.0

//! Files without a name, which user space gets from a call and maps: `anon_inode_getfile`.

use core::{marker::PhantomData, ptr, ptr::NonNull};

use kernel::{
    bindings,
    error::{from_err_ptr, from_result},
    ffi::c_int,
    prelude::*,
    sync::SetOnce,
};

use crate::linux::{
    bindings::{VDMA_O_CLOEXEC, anon_inode_getfile},
    chardev::{Mmap, mmap_prepare},
    vmalloc::VmallocArea,
};

/// What is behind such a file. It is dropped, in process context, with the last reference to the
/// file; each mapping has one.
pub(crate) trait AnonymousFile: Send + Sync + Sized + 'static {
    /// What `/proc/PID/fd` and `/proc/PID/maps` call it.
    const NAME: &'static CStr;

    /// Where the table of the file's operations is kept.
    fn table() -> &'static Table<Self>;
}

/// Files whose mappings are read-only views of vmalloc memory.
pub(crate) trait VmallocFile: AnonymousFile {
    /// The memory.
    fn area(&self) -> Result<&VmallocArea>;
}

/// The place of a table of operations of files with a `T`. In a `static`, so that it has an address
/// of its own, and is part of the module.
///
/// # Invariants
///
/// The table, if there is one, is that of files with a `T`.
pub(crate) struct Table<T>(SetOnce<Operations>, PhantomData<fn(T)>);

struct Operations(bindings::file_operations);

// SAFETY: The table is only read once it is in place.
unsafe impl Send for Operations {}
// SAFETY: A shared reference only reads the table.
unsafe impl Sync for Operations {}

impl<T: AnonymousFile> Table<T> {
    pub(crate) const fn new() -> Self {
        // INVARIANT: There is no table yet.
        Self(SetOnce::new(), PhantomData)
    }

    /// Sets `owner` and `release` as well, and puts the table in place, unless there is one.
    fn install(&self, module: &'static ThisModule, operations: bindings::file_operations) {
        // INVARIANT: The callers below pass operations of files with a `T`.
        self.0.populate(Operations(bindings::file_operations {
            owner: module.as_ptr(),
            release: Some(release::<T>),
            ..operations
        }));
    }
}

/// Puts the table for `T` in place, whose files are mapped as [`Mmap`] says. Once, when the module
/// is loaded.
pub(crate) fn install_mappable<T: AnonymousFile + Mmap>(module: &'static ThisModule) {
    let operations = bindings::file_operations {
        mmap_prepare: Some(mmap_prepare::<T>),
        ..Default::default()
    };
    T::table().install(module, operations);
}

/// Puts the table for `T` in place, whose files are mapped as [`VmallocFile`] says. Once, when the
/// module is loaded.
pub(crate) fn install_vmalloc<T: VmallocFile>(module: &'static ThisModule) {
    let operations = bindings::file_operations {
        mmap: Some(mmap_vmalloc::<T>),
        ..Default::default()
    };
    T::table().install(module, operations);
}

unsafe extern "C" fn mmap_vmalloc<T: VmallocFile>(
    file: *mut bindings::file,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: Files with this operation have a `T`, by the invariant of `Table`, until `release`.
    let state = unsafe { &*(*file).private_data.cast::<T>() };
    from_result(|| {
        // SAFETY: This is the argument of `->mmap`, during the call.
        unsafe { state.area()?.map(vma) }?;
        Ok(0)
    })
}

/// A file that is in no table of file descriptors yet.
///
/// # Invariants
///
/// The object holds a reference to the file.
pub(crate) struct NewFile(NonNull<bindings::file>);

impl NewFile {
    /// A file with `state` behind it. May sleep.
    pub(crate) fn new<T: AnonymousFile>(state: T, writable: bool) -> Result<Self> {
        let operations = T::table().0.as_ref().ok_or(ENODEV)?;
        let state = KBox::into_raw(KBox::new(state, GFP_KERNEL_ACCOUNT)?);
        let access = if writable {
            bindings::O_RDWR
        } else {
            bindings::O_RDONLY
        };
        // SAFETY: The name and the table are static; the file owns the state from here on, if there
        // is a file.
        let file = from_err_ptr(unsafe {
            anon_inode_getfile(
                T::NAME.as_ptr().cast(),
                &operations.0,
                state.cast(),
                (access | VDMA_O_CLOEXEC) as c_int,
            )
        });
        match file {
            // INVARIANT: The function has returned a reference.
            Ok(file) => NonNull::new(file).map(Self).ok_or(ENOMEM),
            Err(error) => {
                // SAFETY: No file took the box that was made above.
                drop(unsafe { KBox::from_raw(state) });
                Err(error)
            }
        }
    }

    /// A free number in the current task's table of files, and this file, to be put together.
    pub(crate) fn reserve(self) -> Result<ReservedFile> {
        // SAFETY: No precondition.
        let descriptor = unsafe { bindings::get_unused_fd_flags(VDMA_O_CLOEXEC) };
        kernel::error::to_result(descriptor)?;
        // INVARIANT: Reserved above.
        Ok(ReservedFile {
            descriptor: descriptor as u32,
            file: self,
        })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // SAFETY: This object holds a reference to the file.
        unsafe { bindings::fput(self.0.as_ptr()) }
    }
}

/// A file with the number that it will have.
///
/// # Invariants
///
/// `descriptor` is reserved in the table of the task that has this object, which is not `Send`.
pub(crate) struct ReservedFile {
    descriptor: u32,
    file: NewFile,
}

impl ReservedFile {
    pub(crate) fn descriptor(&self) -> u32 {
        self.descriptor
    }

    /// Makes the file the user's. From here on it can be used, and closed, by any thread.
    pub(crate) fn install(self) {
        // SAFETY: The number was reserved by this task; the file's reference goes to its table.
        unsafe { bindings::fd_install(self.descriptor, self.file.0.as_ptr()) };
        core::mem::forget(self);
    }
}

impl Drop for ReservedFile {
    fn drop(&mut self) {
        // SAFETY: The number was reserved by this task, and has no file yet.
        unsafe { bindings::put_unused_fd(self.descriptor) }
    }
}

/// The state behind `file`, if it is one with a `T`, while `f` runs.
pub(crate) fn with_descriptor<T: AnonymousFile, R>(
    descriptor: u32,
    f: impl FnOnce(&T) -> R,
) -> Result<R> {
    let operations = T::table().0.as_ref().ok_or(ENODEV)?;
    // SAFETY: Any number may be passed.
    let file = NonNull::new(unsafe { bindings::fget(descriptor) }).ok_or(EBADF)?;
    // INVARIANT: `fget` has taken a reference.
    let file = NewFile(file);
    // SAFETY: The file is valid while there is a reference.
    let raw = unsafe { file.0.as_ref() };
    if !ptr::eq(raw.f_op, &operations.0) {
        return Err(EINVAL);
    }
    // SAFETY: The table is a `static` for files with a `T`, by its invariant, and the file is held:
    // `release` has not run.
    Ok(f(unsafe { &*raw.private_data.cast::<T>() }))
}

unsafe extern "C" fn release<T: AnonymousFile>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `NewFile::new` has put the box there, and release is the last call on a file.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<T>()) });
    0
}
