//! Completions that are polled for instead of signalled by an interrupt.

use std::os::{fd::AsRawFd as _, unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;

use super::{SHALLOW, SLOW};
use crate::support::{
    KIB, PAGE,
    batch::Batch,
    bytes,
    driver::{self, Reloaded},
    open, open_direct, procfs,
    region::Region,
    uring::{self, Uring},
};

/// Interrupts of the device so far.
fn interrupts() -> Result<u64> {
    let bound = driver::bound()?;
    procfs::interrupts(bound.first().context("the driver is bound to no device")?)
}

#[guest_test]
fn polled_rings_need_no_interrupt() -> Result<()> {
    const BATCH: Batch = Batch::consecutive(50, KIB, 0);
    const ROUNDS: usize = 10;
    let device = open_direct()?;
    let data = bytes::random(1, BATCH.total());
    device.file().write_all_at(&data, 0)?;
    let region = Region::anonymous(BATCH.total())?;
    let mut ring = Uring::with_iopoll(64)?;
    let before = device.file_statistics()?;
    let interrupts_before = interrupts()?;
    for _ in 0..ROUNDS {
        // SAFETY: The region lives until all requests have completed.
        unsafe { ring.run(&BATCH.reads(&device, &region)) }?;
    }
    bytes::expect(&region.read(0..BATCH.total())?, &data, "what was read")?;
    let after = device.file_statistics()?;
    ensure!(
        after.polled - before.polled > 0,
        "no completion was found by polling: {after:?}"
    );
    let interrupts_between = interrupts()?;
    let polled = interrupts_between - interrupts_before;
    let count = (ROUNDS * BATCH.count) as u64;
    ensure!(
        polled <= count / 10,
        "{polled} interrupts for {count} polled reads"
    );
    let mut ring = Uring::new(1)?;
    for _ in 0..50 {
        let read = uring::read(device.file(), &region, 0..KIB, 0);
        // SAFETY: The region lives until the request has completed.
        unsafe { ring.run(&[read]) }?;
    }
    let others = interrupts()? - interrupts_between;
    ensure!(
        others >= 50,
        "{others} interrupts for 50 reads of which each needs one"
    );
    Ok(())
}

#[guest_test]
fn polled_and_other_requests_mix() -> Result<()> {
    const BATCH: Batch = Batch::at_one_offset(16, KIB, 0);
    let device = open_direct()?;
    let data = bytes::random(12, KIB);
    device.file().write_all_at(&data, 0)?;
    let for_polled = Region::anonymous(BATCH.total())?;
    let for_plain = Region::anonymous(BATCH.total())?;
    let mut polled = Uring::with_iopoll(64)?;
    let mut plain = Uring::new(64)?;
    for _ in 0..20 {
        // SAFETY: The region lives until all requests have completed, below.
        unsafe { polled.submit(&BATCH.reads(&device, &for_polled)) }?;
        // SAFETY: The region lives until all requests have completed, below.
        unsafe { plain.submit(&BATCH.reads(&device, &for_plain)) }?;
        bytes::expect_at(device.file(), 0, &data[..512], "a plain read")?;
        // Requests that wait for interrupts do not depend on a poller.
        plain.wait(BATCH.count).context("with interrupts")?;
        polled.wait(BATCH.count).context("polled")?;
    }
    for region in [&for_polled, &for_plain] {
        let expected = data.repeat(BATCH.count);
        bytes::expect(&region.read(0..BATCH.total())?, &expected, "what was read")?;
    }
    Ok(())
}

#[guest_test]
fn hipri_reads_busy_poll() -> Result<()> {
    let device = open_direct()?;
    let data = bytes::random(2, PAGE);
    device.file().write_all_at(&data, 0)?;
    let region = Region::anonymous(PAGE)?;
    let before = device.file_statistics()?;
    for _ in 0..100 {
        let vector = libc::iovec {
            iov_base: region.at(0).cast(),
            iov_len: PAGE,
        };
        // SAFETY: The vector names the region, which is mapped.
        let moved = unsafe {
            libc::preadv2(
                std::os::fd::AsRawFd::as_raw_fd(device.file()),
                &raw const vector,
                1,
                0,
                libc::RWF_HIPRI,
            )
        };
        ensure!(
            moved == PAGE as isize,
            "preadv2: {moved}, {}",
            std::io::Error::last_os_error()
        );
    }
    bytes::expect(&region.read(0..PAGE)?, &data, "what was read")?;
    let polled = device.file_statistics()?.polled - before.polled;
    ensure!(
        polled >= 90,
        "{polled} of 100 completions were found by polling"
    );
    Ok(())
}

#[guest_test]
fn plain_reads_busy_poll_with_poll_us() -> Result<()> {
    let _driver = Reloaded::with(&["poll_us=100000"])?;
    let device = open()?;
    let before = device.file_statistics()?;
    for _ in 0..100 {
        device.file().read_exact_at(&mut [0; 512], 0)?;
    }
    let polled = device.file_statistics()?.polled - before.polled;
    ensure!(
        polled >= 90,
        "{polled} of 100 completions were found by polling"
    );
    Ok(())
}

/// A busy-polling call disables interrupts, and needs them when not all of its requests fit into
/// the queue.
#[guest_test(device_arguments = SHALLOW)]
fn a_busy_polling_call_waits_for_free_descriptors() -> Result<()> {
    // Twenty requests of fourteen pages, one after another and each slowly, in a queue of sixteen.
    const PAGES: usize = 280;
    // Without the time-out, nothing else would notice the completions.
    let _driver = Reloaded::with(&["timeout_ms=0"])?;
    let device = open()?;
    let data = bytes::random(11, PAGES * PAGE);
    device.map(SLOW, data.len())?.write(0, &data)?;
    let target = Region::anonymous(data.len())?;
    target.write(0, &vec![0; data.len()])?;
    // In random order hardly any pages are contiguous, so that a request holds only a few of them.
    let mut order: Vec<usize> = (0..PAGES).collect();
    fastrand::Rng::with_seed(11).shuffle(&mut order);
    let mut expected = Vec::new();
    for page in &order {
        expected.push((page * PAGE, expected.len() * PAGE));
    }
    let vectors: Vec<_> = order
        .iter()
        .map(|page| libc::iovec {
            iov_base: target.at(page * PAGE).cast(),
            iov_len: PAGE,
        })
        .collect();
    let (node, count) = (device.file().as_raw_fd(), i32::try_from(PAGES)?);
    let offset = i64::try_from(SLOW)?;
    // SAFETY: The region is as long, and no reference into it exists.
    let moved = unsafe { libc::preadv2(node, vectors.as_ptr(), count, offset, libc::RWF_HIPRI) };
    ensure!(usize::try_from(moved) == Ok(data.len()), "read: {moved}");
    for (at, from) in expected {
        let back = target.read(at..at + PAGE)?;
        bytes::expect(&back, &data[from..from + PAGE], "what was read back")?;
    }
    let statistics = device.file_statistics()?;
    ensure!(
        statistics.queue_full > 0,
        "the queue was never full: {statistics:?}"
    );
    Ok(())
}

/// The driver's time-out finds them completed, and does not take them for lost.
#[guest_test]
fn unreaped_polled_requests_do_not_time_out() -> Result<()> {
    let _driver = Reloaded::with(&["timeout_ms=300"])?;
    let device = open_direct()?;
    let region = Region::anonymous(PAGE)?;
    let mut ring = Uring::with_iopoll(8)?;
    let read = uring::read(device.file(), &region, 0..512, 0);
    // SAFETY: The region lives until the request has completed, below.
    unsafe { ring.submit(&[read]) }?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    ring.wait(1)?;
    device.nop()?;
    Ok(())
}
