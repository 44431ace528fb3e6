//! Memory for DMA counts against the limit of the user that asks for it.

use anyhow::{Context as _, Result, ensure};
use guest_suites_macros::guest_test;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, Signal, setrlimit},
};
use vdma::Device;

use crate::support::{
    KIB, MIB, PAGE,
    cgroup::MemoryGroup,
    child::Child,
    drop_privileges, errno,
    faults::{self, SLOW},
    open, procfs,
    region::Region,
    uring::{self, Uring},
    wait,
};

/// Pages of the limit in these tests.
const LIMIT: usize = 16;

/// Limits the memory that this process may lock to [`LIMIT`] pages.
fn limit() -> Result<()> {
    let bytes = Some((LIMIT * PAGE) as u64);
    let limit = Rlimit {
        current: bytes,
        maximum: bytes,
    };
    setrlimit(Resource::Memlock, limit).context("setrlimit")
}

/// Allocates `pages` pages, which has to fail with `ENOMEM`.
fn expect_refusal(device: &Device, pages: usize, what: &str) -> Result<()> {
    errno::expect_vdma(
        device.allocate(pages * PAGE).map(drop),
        Errno::NOMEM,
        &format!("{pages} pages {what}"),
    )
}

#[guest_test]
fn allocated_memory_is_charged() -> Result<()> {
    let device = open()?;
    let before = procfs::locked_pages()?;
    let buffer = device.allocate(64 * PAGE)?;
    let charged = procfs::locked_pages()? - before;
    ensure!(charged == 64, "{charged} pages are charged for 64");
    let file = buffer.file().try_clone()?;
    drop(buffer);
    ensure!(
        procfs::locked_pages()? - before == 64,
        "memory that a file keeps is not charged any more"
    );
    drop(file);
    ensure!(
        procfs::locked_pages()? == before,
        "the charge was not released"
    );
    Ok(())
}

#[guest_test]
fn rlimit_memlock_bounds_allocated_memory() -> Result<()> {
    let device = open()?;
    Child::fork(|| {
        limit()?;
        drop_privileges()?;
        expect_refusal(&device, LIMIT + 1, "under a limit of 16")?;
        let first = device.allocate((LIMIT - 4) * PAGE)?;
        let mut memory = vec![0; 8 * PAGE];
        errno::expect_vdma(
            device.register(&mut memory[..4 * PAGE + 1]).map(drop),
            Errno::NOMEM,
            "registered memory beside what is allocated",
        )?;
        let second = device.allocate(4 * PAGE)?;
        expect_refusal(&device, 1, "beside 16")?;
        drop(first);
        drop(second);
        device.allocate(LIMIT * PAGE).map(drop)?;
        Ok(())
    })?
    .succeed()
}

/// The limit is that of the user: children, and programs that they start, have no limit of their
/// own, and what outlives them stays charged.
#[guest_test]
fn processes_share_the_limit_of_their_user() -> Result<()> {
    Child::fork(|| {
        let device = open()?;
        let other = open()?;
        limit()?;
        drop_privileges()?;
        for _ in 0..2 {
            Child::fork(|| {
                let buffer = device.allocate(LIMIT / 2 * PAGE)?;
                // The id stays with the open file, which the parent has, too.
                std::mem::forget(buffer);
                Ok(())
            })?
            .succeed()?;
        }
        Child::fork(|| {
            expect_refusal(&device, 1, "beside those of children")?;
            let mut memory = vec![0; PAGE];
            errno::expect_vdma(
                device.register(&mut memory).map(drop),
                Errno::NOMEM,
                "registered memory beside that of children",
            )
        })?
        .succeed()?;
        expect_refusal(&other, 1, "through another file")?;
        drop(device);
        other.allocate(LIMIT * PAGE).map(drop)?;
        Ok(())
    })?
    .succeed()
}

#[guest_test]
fn registered_memory_is_charged_to_the_user() -> Result<()> {
    Child::fork(|| {
        let device = open()?;
        limit()?;
        drop_privileges()?;
        let mut memory = vec![0; LIMIT * PAGE];
        let half = &mut memory[..(LIMIT / 2 - 1) * PAGE];
        for _ in 0..2 {
            Child::fork(|| {
                let buffer = device.register(half)?;
                // Its pages stay pinned, for the parent has the open file.
                std::mem::forget(buffer);
                Ok(())
            })?
            .succeed()?;
        }
        errno::expect_vdma(
            device.register(&mut memory[..3 * PAGE]).map(drop),
            Errno::NOMEM,
            "memory beside that of children",
        )
    })?
    .succeed()
}

#[guest_test]
fn cap_ipc_lock_exempts_from_the_limit() -> Result<()> {
    let device = open()?;
    Child::fork(|| {
        limit()?;
        let mut memory = vec![0; 4 * LIMIT * PAGE];
        let _registered = device.register(&mut memory)?;
        let _allocated = device.allocate(4 * LIMIT * PAGE)?;
        Ok(())
    })?
    .succeed()
}

/// A process that is killed does not go on allocating gigabytes.
#[guest_test(memory_mib = 5120, timeout = 120)]
fn a_killed_process_stops_allocating() -> Result<()> {
    const LENGTH: usize = 3072 * MIB;
    let device = open()?;
    let before = procfs::pages_allocated()?;
    let allocated = || -> Result<usize> { Ok((procfs::pages_allocated()? - before) * PAGE) };
    let child = Child::fork(|| {
        device.allocate(LENGTH).map(drop)?;
        Ok(())
    })?;
    wait::until("the child allocates", || Ok(allocated()? > 64 * MIB))?;
    child.signal(Signal::KILL)?;
    child.die_of(Signal::KILL)?;
    ensure!(
        allocated()? < LENGTH,
        "{} MiB were allocated all the same",
        allocated()? / MIB
    );
    wait::until("the memory is released", || {
        Ok(device.device_statistics()?.buffers == 0)
    })
}

/// What the driver keeps for requests in flight belongs to the memory cgroup of their submitter.
#[guest_test(device_arguments = faults::ARGUMENTS)]
fn requests_in_flight_are_charged_to_the_memory_cgroup() -> Result<()> {
    const REQUESTS: usize = 64;
    const LENGTH: usize = 512 * KIB;
    /// Bytes of a scatter-gather entry, of which each page has one.
    const ENTRY: usize = 32;
    let device = open()?;
    let group = MemoryGroup::new()?;
    // Pages in random order are not neighbours.
    let region = Region::anonymous(LENGTH)?;
    let mut pages: Vec<usize> = (0..LENGTH / PAGE).collect();
    fastrand::Rng::with_seed(3).shuffle(&mut pages);
    for page in pages {
        region.write(page * PAGE, &[1])?;
    }
    Child::fork(|| {
        group.enter()?;
        let mut ring = Uring::new(REQUESTS.try_into()?)?;
        let request = uring::read(device.file(), &region, 0..LENGTH, SLOW.start);
        let before = group.slab()?;
        // SAFETY: The region lives until all requests have completed, below.
        unsafe { ring.submit(&vec![request; REQUESTS]) }?;
        // By the time that they have been added up, some requests have completed.
        let lists = REQUESTS * LENGTH / PAGE * ENTRY;
        let charged = wait::until("the lists of pages are charged", || {
            Ok(group.slab()?.saturating_sub(before) >= lists / 2)
        });
        ring.wait(REQUESTS)?;
        charged
    })?
    .succeed()
}
