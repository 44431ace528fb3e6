//! poll(2), epoll, eventfd, and completions that are polled for.

use std::{
    io::IoSliceMut,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    io::{Errno, ReadWriteFlags, preadv2},
    thread::{CpuSet, sched_setaffinity},
};
use vdma::Device;

use crate::support::{
    KIB, PAGE,
    aio::{Context, Iocb},
    batch::Batch,
    bytes,
    completion::Expected,
    driver::{
        Reloaded, Unbound, {self},
    },
    errno, open, open_direct, procfs,
    region::Region,
    uring::{
        Request, Uring, fd, {self},
    },
    wait,
};

/// A queue that is soon full, and requests that the device delays, one after another.
const SHALLOW: &[&str] = &["--queue-size=16", "--fault=delay=250ms,range=16M+1M"];

/// Several such queues.
const SHALLOW_QUEUES: &[&str] = &[
    "--num-queues=4",
    "--queue-size=16",
    "--fault=delay=250ms,range=16M+1M",
];

/// Offset of the delayed requests.
const SLOW: u64 = 16 << 20;

/// The events that `poll` reports without waiting.
fn ready(device: &Device) -> Result<PollFlags> {
    wait_ready(device, 0)
}

/// The events that `poll` reports within some seconds.
fn wait_ready(device: &Device, seconds: i64) -> Result<PollFlags> {
    let mut fds = [PollFd::new(device.file(), PollFlags::IN | PollFlags::OUT)];
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&time)).context("poll")?;
    Ok(fds[0].revents())
}

#[guest_test]
fn an_idle_device_is_ready() -> Result<()> {
    let device = open()?;
    let flags = ready(&device)?;
    ensure!(flags == PollFlags::IN | PollFlags::OUT, "{flags:?}");
    Ok(())
}

/// As many requests as the queues of the device have descriptors, and `more`, all of them delayed.
fn delayed(device: &Device, more: usize) -> Batch {
    let info = device.info();
    // Each takes one descriptor, an indirect one.
    let count = (info.queue_size * info.num_queues) as usize + more;
    Batch::at_one_offset(count, KIB, SLOW)
}

#[guest_test(device_arguments = SHALLOW)]
fn a_full_queue_is_not_ready_until_descriptors_are_free() -> Result<()> {
    let device = open()?;
    let batch = delayed(&device, 4);
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::new(4096)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&device, &region)) }?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let flags = wait_ready(&device, 20)?;
    ensure!(
        flags == PollFlags::IN | PollFlags::OUT,
        "{flags:?} in the end"
    );
    ring.wait(batch.count)
}

#[guest_test(device_arguments = SHALLOW)]
fn nowait_on_a_full_queue_is_eagain() -> Result<()> {
    let device = open()?;
    let batch = delayed(&device, 0);
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::new(32)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&device, &region)) }?;
    let mut buffer = vec![0; PAGE];
    let mut target = [IoSliceMut::new(&mut buffer)];
    let read = |target: &mut [IoSliceMut<'_>]| {
        preadv2(device.file(), target, 0, ReadWriteFlags::NOWAIT).map_err(std::io::Error::from)
    };
    errno::expect(read(&mut target), Errno::AGAIN, "a read with RWF_NOWAIT")?;
    ring.wait(batch.count)?;
    let moved = read(&mut target).context("with free descriptors")?;
    ensure!(moved == PAGE, "{moved} bytes");
    Ok(())
}

/// io_uring registers a poll request with two wait queues, libaio with one.
#[guest_test(device_arguments = SHALLOW_QUEUES)]
fn one_poll_covers_all_queues() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu).context("sched_setaffinity")?;
    let device = open()?;
    // One of the queues is full, that of this CPU.
    let batch = Batch::at_one_offset(device.info().queue_size as usize, KIB, SLOW);
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::new(32)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&device, &region)) }?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let events = PollFlags::IN | PollFlags::OUT;
    let mut context = Context::new(1)?;
    let mut iocbs = [Iocb::poll(device.file(), events, 0)];
    // SAFETY: There is no buffer.
    unsafe { context.submit_all(&mut iocbs) }?;
    let mut poller = Uring::new(1)?;
    let poll = opcode::PollAdd::new(fd(device.file()), events.bits().into()).build();
    // SAFETY: There is no buffer.
    unsafe { poller.submit(&[Request::new(poll, Expected::Events)]) }?;
    context.wait(1).context("libaio")?;
    poller.wait(1).context("io_uring")?;
    ring.wait(batch.count)
}

/// Polled requests need no interrupt, but a poll(2) waiter needs one when descriptors free up.
#[guest_test(device_arguments = SHALLOW)]
fn free_descriptors_among_polled_requests_wake_poll() -> Result<()> {
    let device = open_direct()?;
    let batch = delayed(&device, 0);
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::with_iopoll(32)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&device, &region)) }?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let flags = wait_ready(&device, 20)?;
    ensure!(!flags.is_empty(), "free descriptors did not wake poll");
    ring.wait(batch.count)
}

#[guest_test]
fn removal_raises_pollhup() -> Result<()> {
    let device = open()?;
    let waiter = std::thread::scope(|scope| -> Result<PollFlags> {
        let file = device.file();
        let waiter = scope.spawn(move || -> Result<PollFlags> {
            // POLLHUP and POLLERR are always reported, and no other events are asked for.
            let mut fds = [PollFd::new(file, PollFlags::empty())];
            let time = Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            poll(&mut fds, Some(&time)).context("poll")?;
            Ok(fds[0].revents())
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        let unbound = Unbound::new()?;
        let flags = waiter
            .join()
            .ok()
            .context("the polling thread panicked")??;
        unbound.bind()?;
        Ok(flags)
    })?;
    ensure!(
        waiter.contains(PollFlags::HUP | PollFlags::ERR),
        "{waiter:?}"
    );
    let flags = ready(&device)?;
    ensure!(
        flags.contains(PollFlags::HUP | PollFlags::ERR),
        "{flags:?} of a dead file"
    );
    Ok(())
}

#[guest_test]
fn epoll_accepts_the_device() -> Result<()> {
    let device = open()?;
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let events = epoll::EventFlags::IN | epoll::EventFlags::OUT;
    epoll::add(
        &instance,
        device.file(),
        epoll::EventData::new_u64(7),
        events,
    )?;
    let mut list: Vec<epoll::Event> = Vec::with_capacity(4);
    let time = Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    epoll::wait(
        &instance,
        rustix::buffer::spare_capacity(&mut list),
        Some(&time),
    )?;
    ensure!(
        list.len() == 1 && list[0].data.u64() == 7,
        "{} events",
        list.len()
    );
    Ok(())
}

#[guest_test]
fn eventfd_counts_completions() -> Result<()> {
    let device = open()?;
    let event = eventfd(0, EventfdFlags::NONBLOCK)?;
    device.set_event(Some(std::os::fd::AsFd::as_fd(&event)))?;
    let count = || -> Result<u64> {
        let mut bytes = [0; 8];
        match rustix::io::read(&event, &mut bytes) {
            Ok(_) => Ok(u64::from_ne_bytes(bytes)),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    };
    ensure!(count()? == 0, "events before anything has happened");
    let batch = Batch::at_one_offset(20, KIB, 0);
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::new(64)?;
    // SAFETY: The region lives until all requests have completed.
    unsafe { ring.run(&batch.reads(&device, &region)) }?;
    let mut events = 0;
    wait::until("an event for each transfer", || {
        events += count()?;
        Ok(events == 20)
    })?;
    device.nop()?;
    ensure!(count()? == 1, "not one event for one operation");
    // Transfers of other files do not count.
    open()?.nop()?;
    ensure!(count()? == 0, "an event of another file");
    device.set_event(None)?;
    device.nop()?;
    ensure!(count()? == 0, "an event after the eventfd was removed");
    Ok(())
}

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

/// A busy-polling call disables interrupts, and needs them when not all of its requests fit into the
/// queue.
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
        bytes::expect(&back, &data[from..from + PAGE], "what came back")?;
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
