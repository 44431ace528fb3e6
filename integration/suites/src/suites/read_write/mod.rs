//! Plain reads and writes.

mod flags;
mod memory;
mod ranges;
mod segments;
mod synchronous;

use std::{os::unix::fs::FileExt as _, sync::Barrier};

use anyhow::{Context as _, Result, bail};
use guest_suites_macros::guest_test;

use crate::support::{KIB, MIB, bytes, open};

#[guest_test]
fn many_threads_and_openers_at_once() -> Result<()> {
    const THREADS: usize = 8;
    const EACH: usize = 2 * MIB;
    let shared = open()?;
    let start = Barrier::new(THREADS);
    let work = |thread: usize| -> Result<()> {
        // Every other thread has a file of its own.
        let own = open()?;
        let file = if thread.is_multiple_of(2) {
            own.file()
        } else {
            shared.file()
        };
        let base = (thread * EACH) as u64;
        let mut random = fastrand::Rng::with_seed(thread as u64);
        let mut oracle = vec![0; 64 * KIB];
        file.write_all_at(&oracle, base)?;
        start.wait();
        for _ in 0..50 {
            let offset = random.usize(..oracle.len());
            let length = random.usize(..=oracle.len() - offset);
            let data = bytes::random(random.u64(..), length);
            file.write_all_at(&data, base + offset as u64)?;
            oracle[offset..offset + length].copy_from_slice(&data);
            bytes::expect_at(file, base, &oracle, "this thread's bytes")?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        for (number, thread) in threads.into_iter().enumerate() {
            match thread.join() {
                Ok(result) => result.with_context(|| format!("thread {number}"))?,
                Err(_) => bail!("thread {number} panicked"),
            }
        }
        Ok(())
    })
}
