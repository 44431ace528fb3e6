//! The load of a measurement: reads through io_uring with as little code around them as possible,
//! so that the cost of a request is not lost in that of the program.

use std::{
    fs::OpenOptions,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
};

use anyhow::{Context as _, Result, bail, ensure};
use io_uring::{IoUring, opcode, types};

use crate::support::{PAGE, region::Region};

/// Requests in flight.
const DEPTH: u32 = 32;

/// Reads go round the first `SPAN` pages of the file, `STRIDE` pages apart, because the block layer
/// would merge requests for neighbours.
const SPAN: u64 = 8191;
const STRIDE: u64 = 37;

/// Reads `count` pages of `node`, with buffers that are registered with the ring (`fixed`) or not.
pub(crate) fn read(node: &str, count: u32, fixed: bool) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(node)
        .with_context(|| format!("cannot open {node}"))?;
    let region = Region::anonymous(DEPTH as usize * PAGE)?;
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(DEPTH)
        .context("io_uring_setup")?;
    ring.submitter()
        .register_files(&[file.as_raw_fd()])
        .context("cannot register the file")?;
    if fixed {
        let buffers = [libc::iovec {
            iov_base: region.at(0).cast(),
            iov_len: DEPTH as usize * PAGE,
        }];
        // SAFETY: The region outlives the ring's use of it, because all requests complete below.
        unsafe { ring.submitter().register_buffers(&buffers) }.context("cannot register memory")?;
    }
    let mut free: Vec<u32> = (0..DEPTH).collect();
    let (mut submitted, mut completed) = (0, 0);
    while completed < count {
        while submitted < count
            && let Some(slot) = free.pop()
        {
            let buffer = region.at(slot as usize * PAGE);
            let offset = u64::from(submitted) * STRIDE % SPAN * PAGE as u64;
            let (file, length) = (types::Fixed(0), u32::try_from(PAGE)?);
            let entry = if fixed {
                opcode::ReadFixed::new(file, buffer, length, 0)
                    .offset(offset)
                    .build()
            } else {
                opcode::Read::new(file, buffer, length)
                    .offset(offset)
                    .build()
            };
            // SAFETY: The buffer is part of the region, and not used until the request has
            // completed.
            unsafe { ring.submission().push(&entry.user_data(slot.into())) }
                .context("the ring is full")?;
            submitted += 1;
        }
        ring.submit_and_wait(1).context("io_uring_enter")?;
        for entry in ring.completion() {
            ensure!(
                entry.result() == i32::try_from(PAGE)?,
                "a read returned {}",
                entry.result()
            );
            free.push(u32::try_from(entry.user_data())?);
            completed += 1;
        }
    }
    Ok(())
}

/// The arguments of `read`: `plain|fixed NODE COUNT`.
pub(crate) fn main(kind: &str, node: &str, count: &str) -> Result<()> {
    let fixed = match kind {
        "plain" => false,
        "fixed" => true,
        other => bail!("{other} is neither plain nor fixed"),
    };
    let count = count
        .parse()
        .with_context(|| format!("{count} is not a number of reads"))?;
    read(node, count, fixed)
}
