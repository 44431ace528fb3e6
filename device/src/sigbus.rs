//! Surviving SIGBUS when the file behind a mapping can no longer provide a page.
//!
//! Guest memory is a file that the front end can truncate under our mapping, and a memory file may
//! lie on a full file system. Either way the next access raises SIGBUS, which would kill the
//! process and all its devices. The handler installed here maps a page of zeroes in its place
//! instead, the access completes, and the thread that made it finds the fault recorded and abandons
//! its work.

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

/// Page sizes to try: a mapping of huge pages can be replaced only in units of whole huge pages.
const PAGE_SHIFTS: [u32; 3] = [12, 21, 30];

/// Runs `access`, during which a SIGBUS is recorded for [`take_fault`] instead of being fatal.
pub fn guarded<T>(access: impl FnOnce() -> T) -> T {
    install_handler();
    GUARDED.set(true);
    let value = access();
    GUARDED.set(false);
    value
}

/// The host address of the latest SIGBUS on this thread, which stays recorded.
#[must_use]
pub fn pending_fault() -> Option<usize> {
    Some(FAULT.get()).filter(|&address| address != 0)
}

/// The host address of the latest SIGBUS on this thread, which is cleared.
#[must_use]
pub fn take_fault() -> Option<usize> {
    let fault = pending_fault();
    FAULT.set(0);
    fault
}

/// Installs the handler, once for the process; [`guarded`] does so too.
pub fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: all bytes zero is a valid `sigaction`: no flags, an empty mask, default action.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        // SAFETY: `action` is initialized and names a handler of the SA_SIGINFO kind, which makes
        // only async-signal-safe calls.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        if result != 0 {
            let e = io::Error::last_os_error();
            log::warn!("cannot handle SIGBUS: {e}; truncated memory will kill this process");
        }
    });
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a SA_SIGINFO handler a valid pointer.
    let info = unsafe { &*info };
    // SAFETY: `si_addr` is the field that the kernel fills in for SIGBUS.
    let address = unsafe { info.si_addr() } as usize;
    if info.si_code == libc::BUS_ADRERR && GUARDED.get() && replace_page(address) {
        FAULT.set(address);
        return;
    }
    // The fault is not one that can be survived: the access is repeated and kills the process.
    // SAFETY: resetting a signal to its default action has no preconditions.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Maps zeroes where the page at `address` cannot be provided.
fn replace_page(address: usize) -> bool {
    // SAFETY: the call has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the location is valid for the life of this thread, which alone accesses it.
    let saved = unsafe { *errno };
    let replaced = PAGE_SHIFTS.iter().any(|shift| {
        let size = 1usize << shift;
        let page = (address & !(size - 1)) as *mut c_void;
        // SAFETY: the faulting access was made through a mapping of guest or device memory, which
        // stays in place while the thread is inside of `guarded`; such mappings consist of whole
        // pages of the size tried, since the kernel refuses the call for a smaller one. This
        // process refers to the page only as shared, volatile memory.
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
    // SAFETY: the location is valid for the life of this thread, which alone accesses it.
    unsafe { *errno = saved };
    replaced
}

/// Maps the page of `file` that holds `at` over the page of zeroes that replaced it in `mapping`
/// (which begins at the file's first byte), so that the next access reaches the file again.
///
/// # Errors
///
/// `InvalidInput` when `at` lies outside of the mapping, otherwise those of `mmap`.
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
    // SAFETY: the range lies inside of `mapping`, as just checked, which stays mapped while it is
    // borrowed, and it becomes what it was: shared pages of the same file. This process refers to
    // it only as volatile memory.
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
