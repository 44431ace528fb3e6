//! Surviving memory that its owner takes away.
//!
//! Guest memory is a file that the front end can cut off under our mapping, and a memory file may
//! lie on a full file system. Either way the next access raises SIGBUS, which would end the daemon
//! and all its devices. Instead a page of zeroes takes the place, the access goes on, and whoever
//! made it learns of the fault afterwards and gives up what it was doing.

use std::{
    cell::Cell, ffi::c_void, fs::File, io, mem::MaybeUninit, os::fd::AsRawFd, ptr, sync::Once,
};

use vm_memory::MmapRegion;

thread_local! {
    /// Whether this thread is inside of [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Address of the latest fault, 0 for none.
    static FAULT: Cell<usize> = const { Cell::new(0) };
}

/// Page sizes to try: a mapping of huge pages can only be replaced by whole ones.
const PAGE_SHIFTS: [u32; 3] = [12, 21, 30];

/// Runs `access` so that a bus error in it is recorded for [`take_fault`] instead of being fatal.
pub fn guarded<T>(access: impl FnOnce() -> T) -> T {
    install();
    GUARDED.set(true);
    let value = access();
    GUARDED.set(false);
    value
}

/// The host address of the latest bus error on this thread, left in place.
#[must_use]
pub fn fault() -> Option<usize> {
    Some(FAULT.get()).filter(|&address| address != 0)
}

/// The host address of a bus error on this thread since the last call.
#[must_use]
pub fn take_fault() -> Option<usize> {
    let fault = fault();
    FAULT.set(0);
    fault
}

/// Installs the handler, once for the process; [`guarded`] does so too.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all bytes zero is a valid `sigaction`: no flags, an empty mask, default action.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: `action` is initialized and names a handler of the SA_SIGINFO kind, which keeps to
        // async-signal-safe calls.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        if result != 0 {
            let e = io::Error::last_os_error();
            log::warn!("cannot handle SIGBUS: {e}; memory that vanishes will end the daemon");
        }
    });
}

extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands a SA_SIGINFO handler a valid pointer.
    let info = unsafe { &*info };
    // SAFETY: `si_addr` is the field that SIGBUS fills.
    let address = unsafe { info.si_addr() } as usize;
    if info.si_code == libc::BUS_ADRERR && GUARDED.get() && replace_page(address) {
        FAULT.set(address);
        return;
    }
    // Not ours: let the access fault again, and be fatal.
    // SAFETY: resetting a signal to its default action has no preconditions.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Puts zeroes where the page at `address` cannot be had.
fn replace_page(address: usize) -> bool {
    // SAFETY: the location of errno belongs to this thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let saved = unsafe { *errno };
    let replaced = PAGE_SHIFTS.iter().any(|shift| {
        let size = 1usize << shift;
        let page = (address & !(size - 1)) as *mut c_void;
        // SAFETY: the faulting access was made through a mapping of guest or device memory, which
        // stays in place while the thread is inside of `guarded`; such mappings are made of whole
        // pages of the size tried, for with a smaller one the call is refused. Nothing in this
        // process refers to the page but as shared, volatile memory.
        let result = unsafe {
            libc::mmap(
                page,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        result != libc::MAP_FAILED
    });
    // SAFETY: as above.
    unsafe { *errno = saved };
    replaced
}

/// Maps the page of `file` that holds `at` over the page of zeroes that took its place in `mapping`
/// (which begins at the file's first byte), so that the next access reaches the file again.
///
/// # Errors
///
/// `InvalidInput` when `at` is not inside, otherwise those of `mmap`.
pub fn restore_page(mapping: &MmapRegion, file: &File, at: usize) -> io::Result<()> {
    let size = 1usize << PAGE_SHIFTS[0];
    let begin = at & !(size - 1);
    if begin
        .checked_add(size)
        .is_none_or(|end| end > mapping.size())
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let offset = libc::off_t::try_from(begin).map_err(io::Error::other)?;
    // SAFETY: the range is inside of `mapping`, as just checked, which stays mapped while it is
    // borrowed, and it becomes what it was: shared pages of the same file. Nothing in this process
    // refers to it but as volatile memory.
    let result = unsafe {
        libc::mmap(
            mapping.as_ptr().wrapping_add(begin).cast(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if result == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

    use super::*;

    #[test]
    fn a_truncated_file_reads_as_zeroes_and_is_reported() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let at = FileOffset::new(file.try_clone().unwrap(), 0);
        let region: MmapRegion = MmapRegion::from_file(at, 8192).unwrap();
        let slice = region.get_slice(0, 8192).unwrap();
        slice.write_obj(7u8, 5000).unwrap();
        file.set_len(4096).unwrap();
        let value = guarded(|| slice.read_obj::<u8>(5000).unwrap());
        assert_eq!(value, 0);
        let fault = take_fault().unwrap();
        let page = slice.ptr_guard().as_ptr() as usize + 4096;
        assert!((page..page + 4096).contains(&fault));
        assert_eq!(take_fault(), None);
        assert_eq!(guarded(|| slice.read_obj::<u8>(0).unwrap()), 0);
        assert_eq!(take_fault(), None);

        file.set_len(8192).unwrap();
        restore_page(&region, &file, 5000).unwrap();
        slice.write_obj(9u8, 5000).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 5000).unwrap();
        assert_eq!(byte, [9]);
        assert!(restore_page(&region, &file, 8192).is_err());
    }
}
