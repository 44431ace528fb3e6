//! Surviving SIGBUS when a page of a mapping is missing.
//!
//! Guest memory is a file that the front end can truncate under our mapping, a memory file may lie
//! on a full file system, and hardware can lose a page. The next access raises SIGBUS, which would
//! kill the process with all its devices. The handler installed here knows the mappings that the
//! thread may access ([`guarded`]). In one of them it records the block around the page as
//! *poisoned* and maps zeroes in its place, so that the access completes; anywhere else the signal
//! has its default action.
//!
//! The zeroes are never taken for data. A user of a mapping asks whether its range is poisoned
//! before an access, which it then does not make, and again after it, and then takes the access as
//! failed. A block stays poisoned as long as the mapping exists. A mapping has at most `BLOCKS`
//! blocks, which bounds the number of mappings that replace parts of it.
//!
//! # Why a look after the access sees the poison
//!
//! Another thread may replace a block while this one accesses it. The handler sets the poison P,
//! executes `membarrier`, and replaces the block R. The user accesses memory A and then loads the
//! poison L, in program order, which [`poison_exists`] enforces for the compiler. `membarrier` is a
//! full barrier on each processor that runs a thread of this process. If L does not see P, then L
//! is before that barrier on its processor; so is A, which precedes L; and A used the mapping as
//! it was before R. If A used the zeroes, then A, and L with it, came after the barrier, and L sees
//! P. The user executes no barrier.

use std::{
    cell::Cell,
    ffi::c_void,
    io,
    mem::MaybeUninit,
    ptr,
    sync::{
        Arc, Mutex, Once, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence},
    },
};

use vm_memory::{MmapRegion, VolatileSlice};

use crate::lock::lock;

/// Most blocks of a mapping.
const BLOCKS: usize = 256;

/// Blocks of one word of the bitmap.
const WORD: usize = u64::BITS as usize;

/// Commands of `membarrier`.
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Codes of SIGBUS (`BUS_MCEERR_AR`, `BUS_MCEERR_AO`): an access hit memory that the hardware has
/// lost; such memory was found, without an access.
const HARDWARE_ACCESS: i32 = 4;
const HARDWARE_NOTICE: i32 = 5;

/// Some block of some mapping is or was poisoned.
static ANY_POISON: AtomicBool = AtomicBool::new(false);

/// `membarrier` can be used, without which no fault is survived.
static HAS_BARRIER: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// What this thread may access; valid and borrowed while it is inside of [`guarded`], empty
    /// otherwise.
    static GUARDED: Cell<*const [Watched]> = const { Cell::new(ptr::slice_from_raw_parts(ptr::dangling(), 0)) };
}

/// Whose memory a mapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Device memory.
    Device,
    /// Guest memory, shared by the front end.
    Guest,
}

/// The missing blocks of one mapping.
#[derive(Debug)]
struct Poison {
    base: usize,
    /// Bytes of the mapping, whole pages.
    length: usize,
    /// Bytes of a block, whole pages.
    block: usize,
    /// A page was missing because the file behind the mapping has none.
    truncated: AtomicBool,
    /// One bit for each block.
    bits: [AtomicU64; BLOCKS / WORD],
}

impl Poison {
    fn new(region: &MmapRegion) -> Self {
        let base = region.as_ptr() as usize;
        let page = page_size(region);
        let length = region.size().next_multiple_of(page);
        Self {
            base,
            length,
            block: length.div_ceil(BLOCKS).next_multiple_of(page),
            truncated: AtomicBool::new(false),
            bits: [const { AtomicU64::new(0) }; BLOCKS / WORD],
        }
    }

    /// The block at `address`, if that is inside of the mapping.
    fn block_at(&self, address: usize) -> Option<usize> {
        let at = address.checked_sub(self.base)?;
        (at < self.length).then(|| at / self.block)
    }

    fn has(&self, block: usize) -> bool {
        let word = self.bits.get(block / WORD);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (block % WORD)) != 0)
    }

    fn count(&self) -> u32 {
        let ones = |word: &AtomicU64| word.load(Ordering::Relaxed).count_ones();
        self.bits.iter().map(ones).sum()
    }

    /// Whether one of the `length` bytes at `address` is in a poisoned block of this mapping.
    fn touches(&self, address: usize, length: usize) -> bool {
        let end = self.base + self.length;
        let first = address.max(self.base);
        let last = address.saturating_add(length).min(end);
        first < last
            && (first - self.base) / self.block <= (last - 1 - self.base) / self.block
            && ((first - self.base) / self.block..=(last - 1 - self.base) / self.block)
                .any(|block| self.has(block))
    }

    /// Poisons `block` and maps zeroes in its place. Called by the signal handler.
    fn replace(&self, block: usize, truncated: bool) -> bool {
        let Some(word) = self.bits.get(block / WORD) else {
            return false;
        };
        word.fetch_or(1 << (block % WORD), Ordering::SeqCst);
        if truncated {
            self.truncated.store(true, Ordering::SeqCst);
        }
        ANY_POISON.store(true, Ordering::SeqCst);
        let begin = self.block * block;
        let size = self.block.min(self.length - begin);
        // SAFETY: the call takes no pointers.
        if unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) } != 0 {
            return false;
        }
        // SAFETY: the block consists of whole pages of this mapping, which stays in place: the
        // thread is inside of `guarded`, which borrows the mapping. This process refers to its
        // bytes only as shared, volatile memory.
        let result = unsafe {
            libc::mmap(
                (self.base + begin) as *mut c_void,
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        result != libc::MAP_FAILED
    }
}

/// The unit in which parts of `region` can be replaced.
fn page_size(region: &MmapRegion) -> usize {
    // SAFETY: the call has no preconditions.
    let smallest = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    // A file of huge pages has blocks of that size. On others a larger unit than needed is
    // harmless.
    region
        .file_offset()
        .and_then(|at| rustix::fs::fstat(at.file()).ok())
        .and_then(|stat| usize::try_from(stat.st_blksize).ok())
        .filter(|&size| {
            size > smallest
                && size.is_power_of_two()
                && (region.as_ptr() as usize).is_multiple_of(size)
                && region.size().is_multiple_of(size)
        })
        .unwrap_or(smallest)
}

/// A mapping whose missing pages are survived inside of [`guarded`].
#[derive(Clone, Debug)]
pub struct Watched {
    poison: Arc<Poison>,
    owner: Owner,
    /// Keeps the memory mapped.
    _region: Arc<MmapRegion>,
}

impl Watched {
    /// Watches `region`. All that watch the same mapping share what is known of its missing pages,
    /// which is not forgotten as long as the mapping exists.
    #[must_use]
    pub fn new(region: Arc<MmapRegion>, owner: Owner) -> Self {
        static KNOWN: Mutex<Vec<(Weak<MmapRegion>, Arc<Poison>)>> = Mutex::new(Vec::new());
        let mut known = lock(&KNOWN);
        known.retain(|(region, _)| region.strong_count() > 0);
        let found = known
            .iter()
            .find(|(other, _)| ptr::eq(other.as_ptr(), Arc::as_ptr(&region)));
        let poison = if let Some((_, poison)) = found {
            Arc::clone(poison)
        } else {
            let poison = Arc::new(Poison::new(&region));
            known.push((Arc::downgrade(&region), Arc::clone(&poison)));
            poison
        };
        Self {
            poison,
            owner,
            _region: region,
        }
    }

    /// Number of poisoned blocks.
    #[must_use]
    pub fn poisoned_blocks(&self) -> u32 {
        self.poison.count()
    }

    /// Whether `slice` is in a poisoned block of this mapping, if only with one byte.
    #[must_use]
    pub fn is_poisoned(&self, slice: &VolatileSlice<'_>) -> bool {
        self.poison
            .touches(slice.ptr_guard().as_ptr() as usize, slice.len())
    }
}

/// Runs `access`, during which a SIGBUS in one of `mappings` poisons a block instead of being
/// fatal.
pub fn guarded<T>(mappings: &[Watched], access: impl FnOnce() -> T) -> T {
    struct Restore(*const [Watched]);
    impl Drop for Restore {
        fn drop(&mut self) {
            GUARDED.set(self.0);
        }
    }
    install_handler();
    let _restore = Restore(GUARDED.replace(ptr::from_ref(mappings)));
    access()
}

/// What this thread may access.
fn with_guarded<T>(visit: impl FnOnce(&[Watched]) -> T) -> T {
    // SAFETY: `guarded` borrows the list for as long as the pointer is set; otherwise the list is
    // empty.
    visit(unsafe { &*GUARDED.get() })
}

/// Whether anything is or was poisoned in this process: to be asked after an access, at the cost of
/// one load, before asking about its memory.
#[inline]
#[must_use]
pub fn poison_exists() -> bool {
    compiler_fence(Ordering::SeqCst);
    ANY_POISON.load(Ordering::Relaxed)
}

/// Whether `slice` is in a poisoned block of a mapping that this thread may access.
#[must_use]
pub fn is_poisoned(slice: &VolatileSlice<'_>) -> bool {
    poison_exists() && with_guarded(|list| list.iter().any(|one| one.is_poisoned(slice)))
}

/// Whether the file behind guest memory that this thread may access has been found truncated.
#[must_use]
pub fn is_guest_memory_truncated() -> bool {
    let truncated =
        |one: &Watched| one.owner == Owner::Guest && one.poison.truncated.load(Ordering::Relaxed);
    poison_exists() && with_guarded(|list| list.iter().any(truncated))
}

/// Installs the handler, once for the process; [`guarded`] does so too.
pub fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: the call takes no pointers.
        let registered =
            unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) };
        if registered == 0 {
            HAS_BARRIER.store(true, Ordering::SeqCst);
        } else {
            let e = io::Error::last_os_error();
            log::warn!("cannot use membarrier: {e}; truncated memory will kill this process");
        }
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
    let survived = match info.si_code {
        libc::BUS_ADRERR => replace_block(address, true),
        HARDWARE_ACCESS => replace_block(address, false),
        // Nothing has accessed it so far.
        HARDWARE_NOTICE => true,
        _ => false,
    };
    if !survived {
        // The access is repeated and kills the process.
        // SAFETY: resetting a signal to its default action has no preconditions.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Replaces the block at `address`, if that is in a mapping that this thread may access.
fn replace_block(address: usize, truncated: bool) -> bool {
    if !HAS_BARRIER.load(Ordering::SeqCst) {
        return false;
    }
    // SAFETY: the call has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the location is valid for the life of this thread, which alone accesses it.
    let saved = unsafe { *errno };
    let replaced = with_guarded(|list| {
        list.iter().any(|one| {
            let block = one.poison.block_at(address);
            block.is_some_and(|block| one.poison.replace(block, truncated))
        })
    });
    // SAFETY: the location is valid for the life of this thread, which alone accesses it.
    unsafe { *errno = saved };
    replaced
}

/// Acts as hardware that has lost the memory at `address`, which this thread accesses now.
#[cfg(test)]
pub(crate) fn lose_memory(address: *const u8) {
    // The kernel's `siginfo`: signal, error and code, then the address.
    let mut info = [0u64; 16];
    info[0] = u64::from(libc::SIGBUS.cast_unsigned());
    info[1] = u64::from(HARDWARE_ACCESS.cast_unsigned());
    info[2] = address as u64;
    let process = i64::from(std::process::id());
    // SAFETY: the call has no preconditions.
    let thread = i64::from(unsafe { libc::gettid() });
    let signal = i64::from(libc::SIGBUS);
    let call = libc::SYS_rt_tgsigqueueinfo;
    // SAFETY: the kernel reads 128 bytes, which is the size of `info`.
    let result = unsafe { libc::syscall(call, process, thread, signal, info.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::process::ExitStatusExt};

    use vm_memory::{Bytes, FileOffset, VolatileMemory};

    use super::*;

    const PAGE: usize = 4096;

    fn mapped(file: &File, length: usize) -> Arc<MmapRegion> {
        let at = FileOffset::new(file.try_clone().unwrap(), 0);
        Arc::new(MmapRegion::from_file(at, length).unwrap())
    }

    fn file_of(length: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length as u64).unwrap();
        file
    }

    /// Number of the kernel's mappings that begin inside of `region`.
    fn parts_of(region: &MmapRegion) -> usize {
        let begin = region.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .filter_map(|line| usize::from_str_radix(line.split_once('-')?.0, 16).ok())
            .filter(|at| (begin..begin + region.size()).contains(at))
            .count()
    }

    #[test]
    fn a_missing_page_is_poisoned_for_as_long_as_the_mapping_exists() {
        let file = file_of(2 * PAGE);
        let region = mapped(&file, 2 * PAGE);
        let watched = Watched::new(Arc::clone(&region), Owner::Guest);
        let [kept, lost] = [0, PAGE].map(|at| region.get_slice(at, PAGE).unwrap());
        lost.write_obj(7u8, 0).unwrap();
        file.set_len(PAGE as u64).unwrap();
        let list = [watched];
        guarded(&list, || {
            assert_eq!(lost.read_obj::<u8>(10).unwrap(), 0);
            assert!(is_poisoned(&lost) && !is_poisoned(&kept));
            assert!(is_poisoned(&region.get_slice(PAGE - 1, 2).unwrap()));
            assert!(!is_poisoned(&region.get_slice(PAGE, 0).unwrap()));
            assert!(is_guest_memory_truncated());
        });
        assert!(!is_poisoned(&lost), "the thread may not access it now");
        drop(list);
        // The file has the page again, and the mapping still has not.
        file.set_len(2 * PAGE as u64).unwrap();
        let again = Watched::new(Arc::clone(&region), Owner::Guest);
        assert!(again.is_poisoned(&lost));
        drop(again);
        let other = Watched::new(mapped(&file, 2 * PAGE), Owner::Guest);
        assert_eq!(other.poisoned_blocks(), 0);
    }

    #[test]
    fn holes_do_not_use_up_the_mappings_of_the_process() {
        let length = 4 * BLOCKS * PAGE;
        let file = file_of(length);
        let region = mapped(&file, length);
        let list = [Watched::new(Arc::clone(&region), Owner::Device)];
        file.set_len(0).unwrap();
        let whole = region.get_slice(0, length).unwrap();
        guarded(&list, || {
            // Neighbours would become one mapping.
            for page in (0..length / PAGE).step_by(2) {
                whole.write_obj(1u8, page * PAGE).unwrap();
            }
        });
        assert_eq!(list[0].poisoned_blocks() as usize, BLOCKS);
        let parts = parts_of(&region);
        assert!(parts <= 2 * BLOCKS, "{parts} mappings");
    }

    #[test]
    fn memory_that_the_hardware_has_lost_is_poisoned() {
        let region: Arc<MmapRegion> = Arc::new(MmapRegion::new(2 * PAGE).unwrap());
        let list = [Watched::new(Arc::clone(&region), Owner::Guest)];
        guarded(&list, || {
            lose_memory(region.as_ptr().wrapping_add(PAGE + 5));
            assert!(is_poisoned(&region.get_slice(PAGE, 1).unwrap()));
            assert!(!is_poisoned(&region.get_slice(0, PAGE).unwrap()));
            assert!(!is_guest_memory_truncated());
        });
    }

    /// The test below runs this in a process of its own.
    #[test]
    #[ignore = "dies of SIGBUS, in the process that the next test starts"]
    fn access_outside_of_the_guarded_mappings() {
        let file = file_of(3 * PAGE);
        let [watched, other] = [PAGE, 3 * PAGE].map(|length| mapped(&file, length));
        let list = [Watched::new(watched, Owner::Guest)];
        file.set_len(0).unwrap();
        let other = other.get_slice(0, 3 * PAGE).unwrap();
        guarded(&list, || other.write_obj(1u8, PAGE).unwrap());
    }

    #[test]
    fn a_fault_outside_of_the_guarded_mappings_is_fatal() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact"])
            .arg("sigbus::tests::access_outside_of_the_guarded_mappings")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }
}
