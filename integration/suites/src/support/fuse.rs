//! A file system of one file, served by this process through FUSE.
//!
//! Guests have no disk to write to, and files of tmpfs live in the page cache alone. This one has a
//! store behind the page cache, to which pages are written back and from which they are read again.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, Request,
    WriteFlags,
};

use crate::test;

const MOUNT: &str = "/tmp/one-file";
const NAME: &str = "file";
const INODE: INodeNo = INodeNo(2);

/// How long the kernel may cache attributes: longer than any mount lasts.
const FOREVER: Duration = Duration::from_secs(100_000);

#[derive(Clone)]
struct Store(Arc<Mutex<Vec<u8>>>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == INODE;
        FileAttr {
            ino: inode,
            size: if is_file { self.lock().len() as u64 } else { 0 },
            blocks: 0,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Store {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&FOREVER, &self.attributes(INODE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _user: Option<u32>,
        _group: Option<u32>,
        _size: Option<u64>,
        _accessed: Option<fuser::TimeOrNow>,
        _modified: Option<fuser::TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed_times: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // The kernel sets times after each writeback; no test reads them.
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let content = self.lock();
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.len());
        let end = start.saturating_add(size as usize).min(content.len());
        reply.data(&content[start..end]);
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut content = self.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let place = start
            .checked_add(data.len())
            .and_then(|end| content.get_mut(start..end));
        match (place, u32::try_from(data.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(data);
                reply.written(length);
            }
            _ => reply.error(Errno::ENOSPC),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }
}

/// The mounted file system. Dropping it unmounts it; its file has to be closed by then.
pub(crate) struct FileSystem {
    store: Store,
    _session: BackgroundSession,
}

impl FileSystem {
    /// Mounts it with a file that holds `content`.
    ///
    /// The kernel may lack FUSE; then the test is skipped.
    pub(crate) fn mount(content: Vec<u8>) -> Result<Self> {
        if !Path::new("/dev/fuse").exists() {
            return test::skip("this kernel has no FUSE");
        }
        fs::create_dir_all(MOUNT).context(MOUNT)?;
        let store = Store(Arc::new(Mutex::new(content)));
        Self::mount_store(store)
    }

    fn mount_store(store: Store) -> Result<Self> {
        let session = fuser::spawn_mount(store.clone(), MOUNT, &fuser::Config::default())
            .context("cannot mount a FUSE file system")?;
        Ok(Self {
            store,
            _session: session,
        })
    }

    /// Unmounts it, which drops all that the kernel has cached of its file, and mounts it again.
    pub(crate) fn remount(self) -> Result<Self> {
        let store = self.store.clone();
        drop(self);
        Self::mount_store(store)
    }

    /// Opens the file.
    pub(crate) fn open(&self) -> Result<File> {
        let path = Path::new(MOUNT).join(NAME);
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| path.display().to_string())
    }

    /// The contents that have been written back so far.
    pub(crate) fn stored(&self) -> Vec<u8> {
        self.store.lock().clone()
    }
}

/// Drops clean pages of the page cache.
pub(crate) fn drop_caches() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("/proc/sys/vm/drop_caches")
}
