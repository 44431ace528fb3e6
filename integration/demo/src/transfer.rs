//! A file on its way through device memory.

use std::{
    fs, io,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use sha2::{Digest, Sha256};

use crate::{buffer::Buffer, demo::Demo};

/// Bytes of one request.
const CHUNK: usize = 64 << 10;

/// Requests that are kept in flight.
const DEPTH: usize = 32;

/// Where the file goes, in bytes from the start of device memory: not aligned, for it need not be.
const OFFSET: u64 = (8 << 20) + 123;

/// Sends the file to device memory and back, and compares.
pub(crate) fn show(demo: &Demo) -> Result<()> {
    let name = demo.file.display();
    let content = fs::read(&demo.file).with_context(|| name.to_string())?;
    let sent = Sha256::digest(&content);
    println!("   {name}: {} bytes, SHA-256 {}", content.len(), hex(&sent));

    let mut source = Buffer::new(content.len())?;
    source[..content.len()].copy_from_slice(&content);
    let mut back = Buffer::new(content.len())?;

    // The source is only read by the kernel, but io_uring wants one kind of pointer for both ways.
    let written = run(demo, Way::ToDevice, &mut source[..content.len()])?;
    print(demo, "written", &written, content.len());
    let read = run(demo, Way::FromDevice, &mut back[..content.len()])?;
    print(demo, "read back", &read, content.len());

    let received = Sha256::digest(&back[..content.len()]);
    println!("   what came back has SHA-256 {}", hex(&received));
    ensure!(sent == received, "the file changed on its way");
    Ok(())
}

#[derive(Clone, Copy)]
enum Way {
    ToDevice,
    FromDevice,
}

/// What one way through the device came to.
struct Account {
    completions: usize,
    in_flight_max: usize,
    time: Duration,
    statistics: vdma::Statistics,
}

/// Moves `memory` chunk by chunk, with [`DEPTH`] requests in flight.
fn run(demo: &Demo, way: Way, memory: &mut [u8]) -> Result<Account> {
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
            // A chunk is no longer than CHUNK.
            let length = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            lengths.push(length);
            let entry = entry(way, file, chunk.as_mut_ptr(), length, at);
            let entry = entry.user_data(index as u64);
            // SAFETY: The chunk is borrowed, and by nobody else, until this function returns, and
            // that it does only when no request is in flight.
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
    Ok(Account {
        completions,
        in_flight_max,
        time: begin.elapsed(),
        statistics: device.file_statistics()?,
    })
}

/// Submits what is queued and waits for a completion. Ends the program when that is impossible:
/// requests may be in flight, and their memory must not be used for anything else.
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

fn entry(way: Way, file: types::Fd, memory: *mut u8, length: u32, at: u64) -> squeue::Entry {
    match way {
        Way::ToDevice => opcode::Write::new(file, memory, length).offset(at).build(),
        Way::FromDevice => opcode::Read::new(file, memory, length).offset(at).build(),
    }
}

fn print(demo: &Demo, what: &str, account: &Account, bytes: usize) {
    let statistics = &account.statistics;
    let seconds = account.time.as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // A rate for people.
    let rate = bytes as f64 / seconds / f64::from(1 << 20);
    println!(
        "   {what}: {} pages pinned, {} scatter-gather entries after coalescing,",
        statistics.pages_pinned, statistics.segments
    );
    println!(
        "      {} requests, up to {} in flight ({} seen by {}), {} completions, {:.1} ms, {rate:.0} MiB/s",
        statistics.submitted,
        account.in_flight_max,
        statistics.in_flight_max,
        demo.device.path().display(),
        account.completions,
        seconds * 1e3,
    );
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
