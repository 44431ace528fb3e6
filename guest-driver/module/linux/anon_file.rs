// SPDX-License-Identifier: GPL-2.0

//! Files without a name, which user space gets from a call and maps: `anon_inode_getfile`.

use core::{ptr, ptr::NonNull};

use kernel::{
    bindings,
    error::{from_err_ptr, from_result},
    ffi::c_int,
    prelude::*,
};

use crate::linux::bindings::{VDMA_O_CLOEXEC, anon_inode_getfile};

/// What is behind such a file. It is dropped, in process context, with the last reference to the file;
/// each mapping has one.
pub(crate) trait AnonymousFile: Send + Sync + Sized + 'static {
    /// What `/proc/PID/fd` and `/proc/PID/maps` call it.
    const NAME: &'static CStr;

    /// Sets the one of `->mmap` and `->mmap_prepare` that it has.
    fn operations(table: &mut bindings::file_operations);

    /// Where the table of the file's operations is kept.
    fn table() -> &'static Table;
}

/// The place of a table of operations, which is part of the module.
pub(crate) struct Table(kernel::sync::SetOnce<Operations>);

struct Operations(bindings::file_operations);

// SAFETY: The table is only read once it is in place.
unsafe impl Send for Operations {}
// SAFETY: As above.
unsafe impl Sync for Operations {}

impl Table {
    pub(crate) const fn new() -> Self {
        Self(kernel::sync::SetOnce::new())
    }
}

/// Puts the table for `T` in place. Once, when the module is loaded.
pub(crate) fn install<T: AnonymousFile>(module: &'static ThisModule) {
    let mut operations = bindings::file_operations {
        owner: module.as_ptr(),
        release: Some(release::<T>),
        ..Default::default()
    };
    T::operations(&mut operations);
    T::table().0.populate(Operations(operations));
}

/// A new file that is not in anybody's table yet.
pub(crate) struct NewFile(NonNull<bindings::file>);

impl NewFile {
    /// A file with `state` behind it. May sleep.
    pub(crate) fn new<T: AnonymousFile>(state: T, writable: bool) -> Result<Self> {
        let operations = T::table().0.as_ref().ok_or(ENODEV)?;
        let state = KBox::into_raw(KBox::new(state, GFP_KERNEL)?);
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
    // SAFETY: Any number may be asked for.
    let file = NonNull::new(unsafe { bindings::fget(descriptor) }).ok_or(EBADF)?;
    // The reference goes with this.
    let file = NewFile(file);
    // SAFETY: The file is valid while there is a reference.
    let raw = unsafe { file.0.as_ref() };
    if !ptr::eq(raw.f_op, &operations.0) {
        return Err(EINVAL);
    }
    // SAFETY: Files with this table have a `T`.
    Ok(f(unsafe { &*raw.private_data.cast::<T>() }))
}

unsafe extern "C" fn release<T: AnonymousFile>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: `NewFile::new` has put the box there, and release is the last call on a file.
    from_result(|| {
        // SAFETY: As above.
        drop(unsafe { KBox::from_raw((*file).private_data.cast::<T>()) });
        Ok(0)
    })
}
