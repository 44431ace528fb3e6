//! The transfer of a file through device memory.

use std::{
    fs, io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use sha2::{Digest, Sha256};

use crate::{buffer::Buffer, demo::Demo};

/// Length of one request, in bytes.
const CHUNK: usize = 64 << 10;

/// Number of requests in flight.
const DEPTH: usize = 32;

/// Offset of the file in device memory, unaligned on purpose.
const OFFSET: u64 = (8 << 20) + 123;

/// Writes the file to device memory, reads it back, and compares.
pub(crate) fn show(demo: &Demo) -> Result<()> {
    let name = demo.file.display();
    let content = fs::read(&demo.file).with_context(|| name.to_string())?;
    let sent = Sha256::digest(&content);
    println!("   {name}: {} bytes, SHA-256 {}", content.len(), hex(&sent));

    let mut source = Buffer::new(content.len())?;
    source[..content.len()].copy_from_slice(&content);
    let mut back = Buffer::new(content.len())?;

    // The kernel only reads the source, but `run` takes one kind of slice for both directions.
    let written = run(demo, Direction::ToDevice, &mut source[..content.len()])?;
    print(demo, "written", &written, content.len());
    let read = run(demo, Direction::FromDevice, &mut back[..content.len()])?;
    print(demo, "read back", &read, content.len());

    let received = Sha256::digest(&back[..content.len()]);
    println!("   what was read has SHA-256 {}", hex(&received));
    ensure!(sent == received, "the file changed in the transfer");
    Ok(())
}

#[derive(Clone, Copy)]
enum Direction {
    ToDevice,
    FromDevice,
}

/// The result of one direction.
struct Summary {
    completions: usize,
    in_flight_max: usize,
    time: Duration,
    statistics: vdma::Statistics,
}

/// Transfers `memory` chunk by chunk, with [`DEPTH`] requests in flight.
fn run(demo: &Demo, direction: Direction, memory: &mut [u8]) -> Result<Summary> {
    let device = vdma::Device::open(demo.device.path())?;
    let file = types::Fd(device.file().as_raw_fd());
    let mut ring = IoUring::new(u32::try_from(DEPTH)?).context("io_uring")?;
    let begin = Instant::now();
    let mut chunks = memory.chunks_mut(CHUNK).enumerate();
    let mut lengths = Vec::new();
    let (mut in_flight, mut in_flight_max, mut completions) = (0, 0, 0);
    let mut failure = None;
    loop {
        while in_flight < DEPTH
            && failure.is_none()
            && let Some((index, chunk)) = chunks.next()
        {
            let at = OFFSET + (index * CHUNK) as u64;
            // A chunk has at most CHUNK bytes.
            let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            lengths.push(length);
            let entry = entry(direction, file, chunk.as_mut_ptr(), length, at);
            let entry = entry.user_data(index as u64);
            // SAFETY: The chunk is exclusively borrowed until this function returns, which it does
            // only when no request is in flight.
            match unsafe { ring.submission().push(&entry) } {
                Ok(()) => in_flight += 1,
                Err(error) => failure = Some(error.into()),
            }
        }
        if in_flight == 0 {
            break;
        }
        in_flight_max = in_flight_max.max(in_flight);
        wait_for_one(&mut ring);
        for completion in ring.completion() {
            in_flight -= 1;
            completions += 1;
            let index = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            let wanted = lengths.get(index).copied();
            if u32::try_from(completion.result()).ok() != wanted {
                failure = Some(anyhow!(
                    "chunk {index} ended with {} instead of its {wanted:?} bytes",
                    completion.result()
                ));
            }
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    Ok(Summary {
        completions,
        in_flight_max,
        time: begin.elapsed(),
        statistics: device.file_statistics()?,
    })
}

/// Submits queued requests and waits for a completion. Exits on failure: requests may be in flight,
/// and their memory must not be reused.
fn wait_for_one(ring: &mut IoUring) {
    loop {
        match ring.submit_and_wait(1) {
            Ok(_) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                eprintln!("vdma-demo: io_uring_enter: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn entry(
    direction: Direction,
    file: types::Fd,
    memory: *mut u8,
    length: u32,
    at: u64,
) -> squeue::Entry {
    match direction {
        Direction::ToDevice => opcode::Write::new(file, memory, length).offset(at).build(),
        Direction::FromDevice => opcode::Read::new(file, memory, length).offset(at).build(),
    }
}

fn print(demo: &Demo, what: &str, summary: &Summary, bytes: usize) {
    let statistics = &summary.statistics;
    let seconds = summary.time.as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // Only printed.
    let rate = bytes as f64 / seconds / f64::from(1 << 20);
    println!(
        "   {what}: {} pages pinned, {} scatter-gather entries after coalescing,",
        statistics.pages_pinned, statistics.segments
    );
    println!(
        "      {} requests, up to {} in flight ({} counted by {}), {} completions, {:.1} ms, {rate:.0} MiB/s",
        statistics.submitted,
        summary.in_flight_max,
        statistics.in_flight_max,
        demo.device.path().display(),
        summary.completions,
        seconds * 1e3,
    );
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
