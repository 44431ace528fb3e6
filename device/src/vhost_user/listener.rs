//! The socket that a device listens on.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use thiserror::Error;

/// Why a device cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process answers on the socket.
    #[error("socket {} is in use by another process; stop it or choose another path", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// The path leads to something that is no socket, and is left alone.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor given is no listening stream socket of the Unix family.
    #[error("file descriptor {fd} is not a listening Unix stream socket; pass one to --fd")]
    NotListening {
        /// The descriptor's number.
        fd: i32,
    },
    /// An operating system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A listening socket; one made from a path removes its file in the end.
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
    /// Listens at `path`. The file appears when connections are accepted and not before, and takes
    /// the place of a socket that nobody listens on any more.
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
        // Made under a name of its own and then moved into place: whoever sees `path` can connect.
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(name);
        let listener = UnixListener::bind(&fresh).map_err(fail("listen at"))?;
        let placed = place(&fresh, path);
        let metadata = fs::metadata(&fresh);
        if placed.is_err() {
            // Best effort: the reason for giving up is the error below.
            let _ = fs::remove_file(&fresh);
        }
        placed?;
        let metadata = metadata
            .or_else(|_| fs::metadata(path))
            .map_err(fail("inspect"))?;
        // `link` leaves two names, `rename` one.
        let _ = fs::remove_file(&fresh);
        Ok(Self {
            listener,
            file: Some(SocketFile {
                path: path.to_owned(),
                inode: (metadata.dev(), metadata.ino()),
            }),
            label: path.display().to_string(),
        })
    }

    /// Takes over a socket that the parent process listens on. Call it once for a number, and
    /// before the process opens descriptors of its own.
    ///
    /// # Errors
    ///
    /// [`ListenError::NotListening`].
    pub fn inherited(number: RawFd) -> Result<Self, ListenError> {
        let refused = ListenError::NotListening { fd: number };
        // Standard streams belong to others, and a number that is not open must not be wrapped.
        let is_open = number > 2 && fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
        if !is_open {
            return Err(refused);
        }
        // SAFETY: the number is open, and nothing in this process owns it: the command line says
        // that the parent passed it down for this very use, and it is taken only here.
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

    /// The path or descriptor, for people.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Removes the socket's file, if it was made here and is still there: nobody can connect any
    /// more.
    pub fn remove_file(&self) {
        let Some(file) = &self.file else { return };
        // Not if another process has put its own there meanwhile.
        let ours = fs::symlink_metadata(&file.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file.inode);
        if ours && let Err(e) = fs::remove_file(&file.path) {
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

/// Gives the socket `fresh` the name `path`.
fn place(fresh: &Path, path: &Path) -> Result<(), ListenError> {
    let fail = |action| {
        move |source| ListenError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match fs::hard_link(fresh, path) {
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
            fs::rename(fresh, path).map_err(fail("listen at"))
        }
        _ => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
    }
}
