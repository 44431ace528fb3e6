//! Waiting without blocking, and looking without waiting: poll, epoll, eventfd, polled completions.

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
    bytes,
    driver::{Reloaded, Unbound},
    errno, open, open_direct,
    region::Region,
    uring::{Uring, fd},
    wait,
};

/// A queue that is soon full, and requests that stay there for a while: one after another.
const SHALLOW: &[&str] = &["--queue-size=16", "--fault=delay=250ms,range=16M+1M"];

/// Several of them.
const SHALLOW_QUEUES: &[&str] = &[
    "--num-queues=4",
    "--queue-size=16",
    "--fault=delay=250ms,range=16M+1M",
];

/// Where they stay.
const SLOW: u64 = 16 << 20;

/// What `poll` says at once.
fn ready(device: &Device) -> Result<PollFlags> {
    wait_ready(device, 0)
}

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

/// Fills the queue with slow requests: `count` of them, each of one page.
fn fill_queue(device: &Device, ring: &mut Uring, region: &Region, count: usize) -> Result<()> {
    let entries: Vec<_> = (0..count)
        .map(|index| {
            opcode::Read::new(fd(device.file()), region.at(index % 64 * KIB), 1024)
                .offset(SLOW)
                .build()
        })
        .collect();
    // SAFETY: Callers keep the region until all has completed.
    unsafe { ring.submit(&entries) }
}

#[guest_test(device_arguments = SHALLOW)]
fn a_full_queue_is_not_ready_until_descriptors_are_free() -> Result<()> {
    let device = open()?;
    let info = device.info();
    let region = Region::anonymous(64 * KIB)?;
    let mut ring = Uring::new(4096)?;
    // Each takes one descriptor at the least (an indirect one).
    let count = (info.queue_size * info.num_queues) as usize + 4;
    fill_queue(&device, &mut ring, &region, count)?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let flags = wait_ready(&device, 20)?;
    ensure!(
        flags == PollFlags::IN | PollFlags::OUT,
        "{flags:?} in the end"
    );
    for completion in ring.wait(count)? {
        ensure!(completion.result == 1024, "{completion:?}");
    }
    Ok(())
}

#[guest_test(device_arguments = SHALLOW)]
fn nowait_on_a_full_queue_is_eagain() -> Result<()> {
    let device = open()?;
    let region = Region::anonymous(64 * KIB)?;
    let mut ring = Uring::new(32)?;
    let count = (device.info().queue_size * device.info().num_queues) as usize;
    fill_queue(&device, &mut ring, &region, count)?;
    let mut buffer = vec![0; PAGE];
    let mut target = [IoSliceMut::new(&mut buffer)];
    let read = |target: &mut [IoSliceMut<'_>]| {
        preadv2(device.file(), target, 0, ReadWriteFlags::NOWAIT).map_err(std::io::Error::from)
    };
    errno::expect(read(&mut target), Errno::AGAIN, "a read with RWF_NOWAIT")?;
    for completion in ring.wait(count)? {
        ensure!(completion.result == 1024, "{completion:?}");
    }
    let moved = read(&mut target).context("with room")?;
    ensure!(moved == PAGE, "{moved} bytes");
    Ok(())
}

/// io_uring waits at two places for a request that polls, and libaio at one.
#[guest_test(device_arguments = SHALLOW_QUEUES)]
fn one_poll_covers_all_queues() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu).context("sched_setaffinity")?;
    let device = open()?;
    let region = Region::anonymous(64 * KIB)?;
    let mut ring = Uring::new(32)?;
    let count = device.info().queue_size as usize;
    fill_queue(&device, &mut ring, &region, count)?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let events = PollFlags::IN | PollFlags::OUT;
    let context = Context::new(1)?;
    let mut iocbs = [Iocb::poll(device.file(), events, 0)];
    // SAFETY: There is no buffer.
    unsafe { context.submit(&mut iocbs) }.context("io_submit")?;
    let mut poller = Uring::new(1)?;
    let poll = opcode::PollAdd::new(fd(device.file()), events.bits().into()).build();
    // SAFETY: There is no buffer.
    unsafe { poller.submit(&[poll]) }?;
    for event in context.wait(1)? {
        ensure!(event.result > 0, "libaio: {event:?}");
    }
    for completion in poller.wait(1)? {
        ensure!(completion.result > 0, "io_uring: {completion:?}");
    }
    for completion in ring.wait(count)? {
        ensure!(completion.result == 1024, "{completion:?}");
    }
    Ok(())
}

/// Requests that somebody polls for ask for no interrupt, and who waits for room needs one.
#[guest_test(device_arguments = SHALLOW)]
fn free_descriptors_among_polled_requests_wake_poll() -> Result<()> {
    let device = open_direct()?;
    let region = Region::anonymous(64 * KIB)?;
    let mut ring = Uring::polled(32)?;
    let count = (device.info().queue_size * device.info().num_queues) as usize;
    fill_queue(&device, &mut ring, &region, count)?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let flags = wait_ready(&device, 20)?;
    ensure!(!flags.is_empty(), "nobody noticed the room");
    for completion in ring.wait(count)? {
        ensure!(completion.result == 1024, "{completion:?}");
    }
    Ok(())
}

#[guest_test]
fn removal_raises_pollhup() -> Result<()> {
    let device = open()?;
    let waiter = std::thread::scope(|scope| -> Result<PollFlags> {
        let file = device.file();
        let waiter = scope.spawn(move || -> Result<PollFlags> {
            // Hangups are always reported, and nothing else is asked for.
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
        let flags = waiter.join().ok().context("the waiter panicked")??;
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
    let region = Region::anonymous(64 * KIB)?;
    let mut ring = Uring::new(64)?;
    let entries: Vec<_> = (0..20)
        .map(|index| {
            opcode::Read::new(fd(device.file()), region.at(index * KIB), 1024)
                .offset(0)
                .build()
        })
        .collect();
    // SAFETY: The region outlives the wait.
    unsafe { ring.submit(&entries) }?;
    ring.wait(20)?;
    let mut events = 0;
    wait::until("an event for each transfer", || {
        events += count()?;
        Ok(events == 20)
    })?;
    device.nop()?;
    ensure!(count()? == 1, "no event for an operation");
    // Another file's transfers are none of its business.
    open()?.nop()?;
    ensure!(count()? == 0, "an event of another file");
    device.set_event(None)?;
    device.nop()?;
    ensure!(count()? == 0, "an event though none is wanted");
    Ok(())
}

/// Interrupts of the device so far: each queue has its own, or all have one, which others may share.
fn interrupts() -> Result<u64> {
    let table = std::fs::read_to_string("/proc/interrupts").context("/proc/interrupts")?;
    let cpus = table
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .count();
    let device = crate::support::driver::bound()?;
    let name = device.first().context("the driver is bound to no device")?;
    let queue = format!("{name}-");
    let is_its = |line: &&str| {
        line.split([' ', ','])
            .any(|word| word == name || word.starts_with(&queue))
    };
    ensure!(table.lines().any(|line| is_its(&line)), "{name}: {table}");
    let mut sum = 0;
    for line in table.lines().filter(is_its) {
        for number in line.split_whitespace().skip(1).take(cpus) {
            sum += number.parse::<u64>()?;
        }
    }
    Ok(sum)
}

#[guest_test]
fn polled_rings_need_no_interrupt() -> Result<()> {
    const COUNT: usize = 500;
    let device = open_direct()?;
    let data = bytes::random(1, 64 * KIB);
    device.file().write_all_at(&data, 0)?;
    let region = Region::anonymous(64 * KIB)?;
    let mut ring = Uring::polled(64)?;
    let before = device.file_statistics()?;
    let interrupts_before = interrupts()?;
    let mut left = COUNT;
    while left > 0 {
        let batch = left.min(50);
        let entries: Vec<_> = (0..batch)
            .map(|index| {
                opcode::Read::new(fd(device.file()), region.at(index * KIB), 1024)
                    .offset((index * KIB) as u64)
                    .build()
            })
            .collect();
        // SAFETY: The region outlives the wait.
        unsafe { ring.submit(&entries) }?;
        for completion in ring.wait(batch)? {
            ensure!(completion.result == 1024, "{completion:?}");
        }
        left -= batch;
    }
    bytes::expect(
        &region.read(0..50 * KIB)?,
        &data[..50 * KIB],
        "what was read",
    )?;
    let after = device.file_statistics()?;
    ensure!(
        after.polled - before.polled > 0,
        "nothing was found by looking: {after:?}"
    );
    let interrupts_between = interrupts()?;
    let polled = interrupts_between - interrupts_before;
    ensure!(
        polled <= COUNT as u64 / 10,
        "{polled} interrupts for {COUNT} polled reads"
    );
    let mut ring = Uring::new(1)?;
    for _ in 0..50 {
        let entry = opcode::Read::new(fd(device.file()), region.at(0), 1024).build();
        // SAFETY: The region outlives the wait.
        unsafe { ring.submit(&[entry]) }?;
        ring.wait(1)?;
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
    let device = open_direct()?;
    let region = Region::anonymous(64 * KIB)?;
    let mut polled = Uring::polled(64)?;
    let mut plain = Uring::new(64)?;
    for _ in 0..20 {
        let entries = |from: usize| -> Vec<_> {
            (0..16)
                .map(|index| {
                    opcode::Read::new(fd(device.file()), region.at((from + index) * KIB), 1024)
                        .offset(0)
                        .build()
                })
                .collect()
        };
        // SAFETY: The region outlives the waits.
        unsafe { polled.submit(&entries(0)) }?;
        // SAFETY: As above.
        unsafe { plain.submit(&entries(16)) }?;
        device.file().read_exact_at(&mut [0; 512], 0)?;
        // Those that wait for interrupts do not depend on somebody who looks.
        plain.wait(16)?;
        polled.wait(16)?;
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
    ensure!(polled >= 90, "{polled} of 100 were found by looking");
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
    ensure!(polled >= 90, "{polled} of 100 were found by looking");
    Ok(())
}

/// Such a call has the interrupts off, and needs them when its requests do not all fit into the queue.
#[guest_test(device_arguments = SHALLOW)]
fn a_busy_polling_call_waits_for_free_descriptors() -> Result<()> {
    // Twenty requests of fourteen pages, one after another and each slowly, in a queue of sixteen.
    const PAGES: usize = 280;
    // Nobody looks after late requests, and so nobody helps out.
    let _driver = Reloaded::with(&["timeout_ms=0"])?;
    let device = open()?;
    let data = bytes::random(11, PAGES * PAGE);
    device.map(SLOW, data.len())?.write(0, &data)?;
    let target = Region::anonymous(data.len())?;
    target.write(0, &vec![0; data.len()])?;
    // In no order, hardly a page follows another, and a request has only some.
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

/// The driver's time-out finds them done, and takes nothing for lost.
#[guest_test]
fn unreaped_polled_requests_do_not_time_out() -> Result<()> {
    let _driver = Reloaded::with(&["timeout_ms=300"])?;
    let device = open_direct()?;
    let region = Region::anonymous(PAGE)?;
    let mut ring = Uring::polled(8)?;
    let read = opcode::Read::new(fd(device.file()), region.at(0), 512)
        .offset(0)
        .build();
    // SAFETY: The region outlives the wait.
    unsafe { ring.submit(&[read]) }?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let completion = ring.wait(1)?[0];
    ensure!(completion.result == 512, "{completion:?}");
    device.nop()?;
    Ok(())
}
