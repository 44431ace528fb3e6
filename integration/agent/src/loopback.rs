//! The loopback network interface.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

/// `IFF_UP | IFF_RUNNING`, in the width that the request has.
const FLAGS: libc::c_short = 0x41;

/// Brings up the interface `lo`.
pub(crate) fn up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = FLAGS;
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
