//! poll(2), epoll, eventfd and non-blocking callers.

use std::{io::IoSliceMut, os::unix::fs::FileExt as _};

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use io_uring::opcode;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    io::{Errno, ReadWriteFlags, preadv, preadv2},
    thread::{CpuSet, sched_setaffinity},
};
use vdma::Device;

use super::{SHALLOW, SLOW};
use crate::support::{
    KIB, PAGE,
    aio::{Context, Iocb, Opcode},
    batch::Batch,
    bytes,
    completion::Expected,
    driver::Unbound,
    errno, open, open_direct, open_with_flags,
    region::Region,
    uring::{Request, Uring, fd},
    wait,
};

/// Four queues like that of [`SHALLOW`].
const SHALLOW_QUEUES: &[&str] = &[
    "--num-queues=4",
    "--queue-size=16",
    "--fault=delay=250ms,range=16M+1M",
];

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

/// As poll(2) says: a call on a non-blocking file fails where it would wait for free descriptors.
#[guest_test(device_arguments = SHALLOW)]
fn a_non_blocking_file_is_eagain_while_it_is_not_ready() -> Result<()> {
    let device = open_with_flags(libc::O_NONBLOCK)?;
    let other = open()?;
    let batch = delayed(&other, 0);
    let region = Region::anonymous(batch.total())?;
    let own = Region::anonymous(2 * PAGE)?;
    let mut ring = Uring::new(32)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&other, &region)) }?;
    let flags = ready(&device)?;
    ensure!(flags.is_empty(), "a full queue is {flags:?}");
    let mut buffer = vec![0; PAGE];
    let result = device.file().read_at(&mut buffer, 0);
    errno::expect(result, Errno::AGAIN, "a read")?;
    let result = device.file().write_at(&buffer, 0);
    errno::expect(result, Errno::AGAIN, "a write")?;
    let mut context = Context::new(2)?;
    let iocb = |opcode, page: usize| {
        let range = page * PAGE..(page + 1) * PAGE;
        Iocb::transfer(opcode, device.file(), &own, range, 0, page as u64)
    };
    let mut iocbs = [iocb(Opcode::Read, 0)?, iocb(Opcode::Write, 1)?];
    // SAFETY: The region lives until both requests have completed, below.
    unsafe { context.submit_all(&mut iocbs) }?;
    context.wait_for_error(2, Errno::AGAIN).context("libaio")?;

    let flags = wait_ready(&device, 20)?;
    ensure!(
        flags == PollFlags::IN | PollFlags::OUT,
        "{flags:?} in the end"
    );
    ring.wait(batch.count)?;
    device.file().write_all_at(&buffer, 0)?;
    device.file().read_exact_at(&mut buffer, 0)?;
    Ok(())
}

/// A call on a non-blocking file moves what the free descriptors allow, be it only one.
#[guest_test(device_arguments = SHALLOW)]
fn a_long_call_on_a_non_blocking_file_is_short() -> Result<()> {
    // Twenty requests of fourteen pages, for sixteen descriptors, at most, that are free.
    const PAGES: usize = 280;
    let device = open_with_flags(libc::O_NONBLOCK)?;
    let other = open()?;
    let data = bytes::random(21, PAGES * PAGE);
    device.map(SLOW, data.len())?.write(0, &data)?;
    // Every other page, so that none is contiguous with the next.
    let mut target = vec![0; 2 * PAGES * PAGE];
    for in_flight in [0, 1] {
        let batch = delayed(&other, 0);
        let batch = Batch::at_one_offset((batch.count - 1) * in_flight, KIB, SLOW);
        let region = Region::anonymous(batch.total().max(PAGE))?;
        let mut ring = Uring::new(32)?;
        // SAFETY: The region lives until all requests have completed, below.
        unsafe { ring.submit(&batch.reads(&other, &region)) }?;
        ensure!(!ready(&device)?.is_empty(), "a descriptor is free");
        let mut pieces: Vec<_> = target
            .chunks_mut(2 * PAGE)
            .map(|two| IoSliceMut::new(&mut two[..PAGE]))
            .collect();
        let read = preadv(device.file(), &mut pieces, SLOW).context("preadv")?;
        ensure!((1..data.len()).contains(&read), "{read} bytes read");
        let back: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_vec()).collect();
        bytes::expect(&back[..read], &data[..read], "what was read")?;
        ring.wait(batch.count)?;
    }
    Ok(())
}

/// io_uring waits until a non-blocking file is ready, with poll, and tries again.
#[guest_test(device_arguments = SHALLOW)]
fn io_uring_waits_for_a_non_blocking_file() -> Result<()> {
    let device = open_with_flags(libc::O_NONBLOCK)?;
    let batch = delayed(&device, 8);
    let region = Region::anonymous(batch.total())?;
    let mut ring = Uring::new(32)?;
    // SAFETY: The region lives until all requests have completed, below.
    unsafe { ring.submit(&batch.reads(&device, &region)) }?;
    ring.wait(batch.count)
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
        "{flags:?} of a file of the removed device"
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
