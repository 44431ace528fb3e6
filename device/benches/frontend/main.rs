//! The device alone, driven by a native front end over memfds; `cargo bench -p vhost-device-dma`.
//!
//! Backend and front end run on one CPU each. "poll" polls the used ring, "wait" sleeps on the
//! call descriptor. Peers in the same run: one-thread `memcpy` over the same buffers, and
//! qemu-storage-daemon's null-co export (which copies nothing) where it is installed.
//!
//! Rates are those of the best of many windows of 2 ms, for the device, `memcpy` and peers alike,
//! since other load on the machine can only slow a window down. Latencies are of all requests.
//!
//! All take turns in short rounds, so that load on the machine affects them equally.
//!
//! `-- --quick` measures for a fifth of the time; `-- NAME` only rows whose name contains NAME;
//! `-- --device-arg ARG` (repeatable) hands ARG to the device.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
#![allow(clippy::cast_precision_loss, unreachable_pub)]

mod case;
mod peer;
mod ring;

use std::time::{Duration, Instant};

use case::{Case, DEVICE_BYTES, cases};
use peer::{Peer, PeerKind};
use ring::Buffer;
use vdma_protocol::Operation;

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(e) = rustix::thread::sched_setaffinity(None, &set) {
        println!("cannot run on CPU {cpu} alone: {e}");
    }
}

/// Counts in windows of time, and keeps the best rate.
struct Windows {
    begin: Instant,
    count: u64,
    best: f64,
}

impl Windows {
    fn new(begin: Instant) -> Self {
        Self {
            begin,
            count: 0,
            best: 0.0,
        }
    }

    fn add(&mut self, count: u64) {
        self.count += count;
    }

    fn tick(&mut self, now: Instant) {
        let elapsed = now.duration_since(self.begin);
        if elapsed >= Duration::from_millis(2) {
            self.best = self.best.max(self.count as f64 / elapsed.as_secs_f64());
            self.count = 0;
            self.begin = now;
        }
    }

    fn best(&self) -> f64 {
        self.best
    }
}

/// Rounds of a row.
const ROUNDS: u32 = 15;

/// The results of the rounds of one row.
#[derive(Default)]
struct Rounds {
    best: f64,
    latencies: Vec<Duration>,
}

impl Rounds {
    fn add(&mut self, rate: f64, latencies: Vec<Duration>) {
        self.best = self.best.max(rate);
        self.latencies.extend(latencies.into_iter().take(1 << 17));
    }

    /// The latency that this share of all requests does not exceed.
    fn quantile(&mut self, share: f64) -> Duration {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share) as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// Drives one peer with one case for about `time`.
fn measure(peer: &mut Peer, case: &Case, time: Duration) -> (f64, Vec<Duration>) {
    let depth = case.depth;
    let mut submitted_at = vec![Instant::now(); usize::from(depth)];
    let mut latencies = Vec::with_capacity(1 << 20);
    let chains: Vec<Vec<Buffer>> = (0..depth).map(|slot| peer.prepare(case, slot)).collect();
    for (slot, chain) in (0..).zip(&chains) {
        peer.ring.write_table(slot, chain);
    }
    let begin = Instant::now();
    let mut windows = Windows::new(begin);
    let mut free: Vec<u16> = (0..depth).collect();
    loop {
        let now = Instant::now();
        let over = now.duration_since(begin) >= time;
        if over && free.len() == usize::from(depth) {
            break;
        }
        if !over {
            let mut any = false;
            while let Some(slot) = free.pop() {
                submitted_at[usize::from(slot)] = now;
                peer.ring.make_available(slot);
                any = true;
            }
            if any {
                peer.ring.publish();
            }
        }
        if case.polled {
            while peer.ring.is_empty() {
                std::hint::spin_loop();
            }
        } else {
            peer.ring.wait();
        }
        let now = Instant::now();
        while let Some(slot) = peer.ring.pop() {
            latencies.push(now.duration_since(submitted_at[usize::from(slot)]));
            free.push(slot);
            windows.add(1);
        }
        windows.tick(now);
        if latencies.len() > (1 << 20) - 1024 {
            latencies.clear();
        }
    }
    peer.check(case);
    (windows.best(), latencies)
}

/// Bytes in a second of `memcpy` over the buffers that a case uses, in its order and its pieces.
fn memcpy(peer: &Peer, case: &Case, time: Duration) -> f64 {
    let chains: Vec<Vec<Buffer>> = (0..case.depth).map(|slot| peer.data(case, slot)).collect();
    let begin = Instant::now();
    let mut windows = Windows::new(begin);
    while begin.elapsed() < time {
        for (slot, chain) in (0u64..).zip(&chains) {
            let mut at = slot * u64::from(case.length) % (DEVICE_BYTES / 2);
            for buffer in chain {
                peer.copy(case.operation == Operation::Write, at, buffer);
                at += u64::from(buffer.length);
            }
            windows.add(u64::from(case.length));
            windows.tick(Instant::now());
        }
    }
    windows.best()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let device_args: Vec<String> = arguments
        .windows(2)
        .filter(|pair| pair[0] == "--device-arg")
        .map(|pair| pair[1].clone())
        .collect();
    let filter: Vec<&String> = arguments
        .iter()
        .filter(|a| !a.starts_with("--") && !device_args.contains(a))
        .collect();
    let time = Duration::from_millis(if quick { 200 } else { 1000 });

    // Children inherit the CPU that they are started on.
    pin(0);
    let mut device = Peer::start(PeerKind::Device, &device_args).unwrap();
    let mut storage = match Peer::start(PeerKind::StorageDaemon, &[]) {
        Ok(peer) => Some(peer),
        Err(reason) => {
            println!("skipped: qemu-storage-daemon ({reason})");
            None
        }
    };
    pin(1);

    println!(
        "{:<28}{:>12}{:>10}{:>10}{:>10}{:>12}{:>8}{:>12}{:>9}",
        "case", "req/s", "p50 us", "p99 us", "GB/s", "memcpy GB/s", "ratio", "qsd req/s", "ratio"
    );
    for case in cases() {
        if !filter.is_empty() && !filter.iter().any(|part| case.name.contains(part.as_str())) {
            continue;
        }
        let copies = [Operation::Read, Operation::Write].contains(&case.operation);
        let copies = copies && case.length >= 4096;
        let comparable = case.length <= 4096 && case.operation != Operation::Write;
        let (mut ours, mut copy, mut peers) =
            (Rounds::default(), Rounds::default(), Rounds::default());
        // The first round warms up.
        for round in 0..=ROUNDS {
            let share = time / ROUNDS;
            let (rate, latencies) = measure(&mut device, &case, share);
            let copied = copies.then(|| memcpy(&device, &case, share));
            let peer = storage.as_mut().filter(|_| comparable);
            let peer = peer.map(|peer| measure(peer, &case, share));
            if round == 0 {
                continue;
            }
            ours.add(rate, latencies);
            if let Some(copied) = copied {
                copy.add(copied, Vec::new());
            }
            if let Some((peer, latencies)) = peer {
                peers.add(peer, latencies);
            }
        }
        let us = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let (p50, p99) = (ours.quantile(0.5), ours.quantile(0.99));
        let bytes = ours.best * f64::from(case.length);
        print!(
            "{:<28}{:>12.0}{:>10.2}{:>10.2}{:>10.2}",
            case.name,
            ours.best,
            us(p50),
            us(p99),
            bytes / 1e9,
        );
        if copies {
            print!("{:>12.2}{:>8.2}", copy.best / 1e9, bytes / copy.best);
        } else {
            print!("{:>12}{:>8}", "-", "-");
        }
        if peers.latencies.is_empty() {
            println!("{:>12}{:>9}", "-", "-");
        } else {
            let p50 = peers.quantile(0.5);
            let ratio = ours.best / peers.best;
            println!(
                "{:>12.0}{ratio:>9.2}  (qsd p50 {:.2} us)",
                peers.best,
                us(p50)
            );
        }
    }
}
