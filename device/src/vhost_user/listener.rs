//! Listening sockets, and the files by which they are reached.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use thiserror::Error;

/// Why a socket cannot be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process listens on the socket.
    #[error("socket {} is in use by another process; stop it or choose another path", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path exists and is not a socket; it is not touched.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// No client could connect to a path of this length.
    #[error("socket path {} is too long; choose one of at most {MAX_PATH} bytes", path.display())]
    TooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// The descriptor is not a listening Unix stream socket.
    #[error("file descriptor {fd} is not a listening Unix stream socket; pass one to --fd")]
    NotListening {
        /// The descriptor's number.
        fd: i32,
    },
    /// An operating system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The path that it concerned.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Sockets bound so far, for their temporary names.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Longest path of a socket: that of `sockaddr_un`, without the final NUL.
const MAX_PATH: usize = 107;

/// A listening socket; one bound to a path removes its file when it is dropped.
#[derive(Debug)]
pub struct SocketListener {
    listener: UnixListener,
    file: Option<SocketFile>,
    label: String,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketListener {
    /// Listens at `path`. The file appears once connections are accepted and not before, and
    /// replaces a stale socket, on which no process listens any more.
    ///
    /// # Errors
    ///
    /// See [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let fail = |action| {
            move |source| ListenError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        if path.as_os_str().len() > MAX_PATH {
            return Err(ListenError::TooLong {
                path: path.to_owned(),
            });
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Bound to a temporary name and then moved into place: once `path` exists, it can be
        // connected to. The temporary name begins with the descriptor of its directory, so that it
        // is short whatever the length of `path`.
        let directory = fs::File::open(parent).map_err(fail("listen at"))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = PathBuf::from(format!(
            "/proc/self/fd/{}/.vdma-{}-{number}",
            directory.as_raw_fd(),
            std::process::id()
        ));
        let listener = UnixListener::bind(&temporary).map_err(fail("listen at"))?;
        let placed = place(&temporary, path);
        let metadata = fs::metadata(&temporary);
        if placed.is_err() {
            // Best effort: the error reported is the one below.
            let _ = fs::remove_file(&temporary);
        }
        placed?;
        let metadata = metadata
            .or_else(|_| fs::metadata(path))
            .map_err(fail("inspect"))?;
        // `link` leaves two names, `rename` one.
        let _ = fs::remove_file(&temporary);
        Ok(Self {
            listener,
            file: Some(SocketFile {
                path: path.to_owned(),
                inode: (metadata.dev(), metadata.ino()),
            }),
            label: path.display().to_string(),
        })
    }

    /// Takes over a listening socket inherited from the parent process. To be called once for a
    /// number, and before the process opens descriptors of its own.
    ///
    /// # Errors
    ///
    /// [`ListenError::NotListening`].
    pub fn inherited(number: RawFd) -> Result<Self, ListenError> {
        let refused = ListenError::NotListening { fd: number };
        // The standard streams have other owners, and a number that is not open must not be
        // wrapped.
        let is_open = number > 2 && fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
        if !is_open {
            return Err(refused);
        }
        // SAFETY: the number is open, and nothing in this process owns it: according to the command
        // line the parent passed it down for this use, and it is taken only here.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        let is_listening = socket_domain(&fd) == Ok(rustix::net::AddressFamily::UNIX)
            && socket_type(&fd) == Ok(rustix::net::SocketType::STREAM)
            && socket_acceptconn(&fd) == Ok(true)
            && rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).is_ok();
        if !is_listening {
            return Err(refused);
        }
        Ok(Self {
            listener: UnixListener::from(fd),
            file: None,
            label: format!("file descriptor {number}"),
        })
    }

    /// The path or descriptor, for log lines.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Removes the socket's file, if it was created here and still exists: no more connections can
    /// be made.
    pub fn remove_file(&self) {
        let Some(file) = &self.file else { return };
        // Another process may have put its own socket there meanwhile.
        let is_ours = fs::symlink_metadata(&file.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file.inode);
        if is_ours && let Err(e) = fs::remove_file(&file.path) {
            log::warn!("cannot remove socket {}: {e}", file.path.display());
        }
    }

    /// Another handle for the same socket.
    ///
    /// # Errors
    ///
    /// Those of `dup`.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl AsFd for SocketListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for SocketListener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

/// Gives the socket `temporary` the name `path`.
fn place(temporary: &Path, path: &Path) -> Result<(), ListenError> {
    let fail = |action| {
        move |source| ListenError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match fs::hard_link(temporary, path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(fail("listen at")(e)),
    }
    let metadata = fs::symlink_metadata(path).map_err(fail("inspect"))?;
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::rename(temporary, path).map_err(fail("listen at"))
        }
        _ => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
    }
}
