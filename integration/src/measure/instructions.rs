//! Instructions of the guest per request, by function.
//!
//! Each job runs twice, with few and with many requests: the difference is the cost of the
//! requests, without that of start and end.

use std::{collections::HashMap, fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use instruction_counter::{Counts, Snapshot};
use serde::Serialize;

use super::{
    guest::{DEVICE, GUEST, boot, sh},
    median::median,
    peers::SIZE_MIB,
};
use crate::{
    host::progress,
    testbed::boot::Testbed,
    vm::{qemu::COUNTS, running::Vm},
};

/// Numbers of requests of the short and the long run.
type Requests = (u32, u32);

/// Many small requests, and fewer of many pages each.
const SMALL: Requests = (1_000, 11_000);
const LARGE: Requests = (100, 1_100);

/// Time limit of a run.
const LIMIT: Duration = Duration::from_secs(300);

/// Number of functions reported for each job, by their instructions.
const FUNCTIONS: usize = 60;

/// A job to be counted.
struct Job {
    name: &'static str,
    /// Arguments before the node and the number of requests.
    words: &'static [&'static str],
    kind: Kind,
    requests: Requests,
    /// Upper limit of the ratio of device to virtio-blk.
    target: Option<f64>,
}

enum Kind {
    Fio,
    /// The reader in the suites' program.
    Reader,
}

const JOBS: &[Job] = &[
    Job {
        name: "4 KiB read, bare io_uring, registered buffers",
        words: &["fixed"],
        kind: Kind::Reader,
        requests: SMALL,
        target: Some(0.6),
    },
    Job {
        name: "4 KiB read, bare io_uring",
        words: &["plain"],
        kind: Kind::Reader,
        requests: SMALL,
        target: Some(0.6),
    },
    Job {
        name: "4 KiB random read, fio, io_uring",
        words: &["--bs=4k", "--iodepth=32", "--rw=randread"],
        kind: Kind::Fio,
        requests: SMALL,
        target: Some(0.6),
    },
    Job {
        name: "4 KiB random write, fio, io_uring",
        words: &["--bs=4k", "--iodepth=32", "--rw=randwrite"],
        kind: Kind::Fio,
        requests: SMALL,
        target: None,
    },
    Job {
        name: "1 MiB read, fio, io_uring, depth 4",
        words: &["--bs=1M", "--iodepth=4", "--rw=randread"],
        kind: Kind::Fio,
        requests: LARGE,
        target: None,
    },
];

impl Job {
    /// Sends `requests` requests to `node`.
    fn run(&self, vm: &mut Vm, node: &str, requests: u32) -> Result<()> {
        let words = self.command(node, requests);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        sh(vm, &words, LIMIT).map(|_| ())
    }

    fn command(&self, node: &str, requests: u32) -> Vec<String> {
        let words = self.words.iter().map(|&word| word.to_owned());
        match self.kind {
            Kind::Fio => [
                "fio",
                "--name=job",
                "--direct=1",
                "--thread",
                "--ioengine=io_uring",
            ]
            .into_iter()
            .map(str::to_owned)
            .chain(words)
            .chain([
                format!("--filename={node}"),
                // With a map, each random offset would be used once.
                "--norandommap".to_owned(),
                format!("--size={SIZE_MIB}M"),
                "--io_size=100G".to_owned(),
                format!("--number_ios={requests}"),
            ])
            .collect(),
            Kind::Reader => ["guest-suites".to_owned(), "read".to_owned()]
                .into_iter()
                .chain(words)
                .chain([node.to_owned(), requests.to_string()])
                .collect(),
        }
    }
}

/// Instructions for each request of a job on one device.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    /// Each round's total.
    pub(crate) rounds: Vec<f64>,
    /// Median of the rounds; the parts below are medians as well.
    pub(crate) total: f64,
    /// Instructions in programs.
    pub(crate) programs: f64,
    /// Instructions in the kernel without the module.
    pub(crate) kernel: f64,
    /// Instructions in the module `vdma`.
    pub(crate) module: f64,
    /// Functions with most instructions.
    pub(crate) functions: Vec<Function>,
}

/// A function of the kernel or of a module.
#[derive(Debug, Serialize)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Instructions per request in it, without the functions that it calls.
    pub(crate) instructions: f64,
}

/// The cost of one job on both devices.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) job: &'static str,
    pub(crate) device: Cost,
    pub(crate) peer: Cost,
    /// The device's total divided by the peer's.
    pub(crate) ratio: f64,
    /// Upper limit of the ratio, if there is a target.
    pub(crate) target: Option<f64>,
}

/// Everything that was counted.
#[derive(Debug, Serialize)]
pub(crate) struct Instructions {
    /// The guest's kernel.
    pub(crate) kernel: String,
    /// Number of runs of each job.
    pub(crate) rounds: u32,
    pub(crate) comparisons: Vec<Comparison>,
}

/// Boots the guest and counts all jobs, `rounds` times each.
pub(crate) fn run(testbed: &Testbed, rounds: u32, verbose: bool) -> Result<Instructions> {
    let (mut vm, nodes) = boot(testbed, verbose)?;
    let path = testbed.run.path().join(GUEST).join(COUNTS);
    let counts = Counts::open(&path).with_context(|| path.display().to_string())?;
    let symbols = Symbols::read(&mut vm)?;
    let (_, peer) = nodes.first().context("there is no peer")?;
    // The first run of a program reads it from the root disk.
    for job in JOBS {
        let _step = progress::step(format!("warming up: {}", job.name));
        for node in [DEVICE, peer.as_str()] {
            job.run(&mut vm, node, job.requests.0)?;
        }
    }
    let mut comparisons = Vec::new();
    for job in JOBS {
        let mut sides = [Rounds::default(), Rounds::default()];
        for round in 1..=rounds {
            let _step = progress::step(format!("round {round} of {rounds}: {}", job.name));
            for (side, node) in sides.iter_mut().zip([DEVICE, peer.as_str()]) {
                let mut count = |requests| {
                    let before = counts.snapshot();
                    job.run(&mut vm, node, requests)?;
                    let spent = counts.snapshot().since(&before);
                    ensure!(
                        spent.lost() == 0,
                        "{} blocks of code did not fit into {}",
                        spent.lost(),
                        path.display()
                    );
                    Ok(spent)
                };
                let few = count(job.requests.0)?;
                let many = count(job.requests.1)?;
                side.add(job.requests, &few, &many, &symbols);
            }
        }
        let [device, peer] = sides.map(|side| side.cost(&symbols));
        comparisons.push(Comparison {
            job: job.name,
            ratio: device.total / peer.total,
            device,
            peer,
            target: job.target,
        });
    }
    let kernel = vm.kernel().to_owned();
    vm.finish()?;
    Ok(Instructions {
        kernel,
        rounds,
        comparisons,
    })
}

/// One job on one device, round by round.
#[derive(Default)]
struct Rounds {
    /// Instructions per request in programs, the kernel and the module.
    parts: Vec<[f64; 3]>,
    /// Sum over all rounds by [`Symbols::index`]; noise can make it negative.
    functions: HashMap<Option<usize>, f64>,
}

impl Rounds {
    fn add(&mut self, requests: Requests, few: &Snapshot, many: &Snapshot, symbols: &Symbols) {
        let more = f64::from(requests.1 - requests.0);
        let mut parts = [0.0; 3];
        for (snapshot, sign) in [(many, 1.0), (few, -1.0)] {
            for (address, count) in snapshot.blocks() {
                #[allow(clippy::cast_precision_loss)] // Far from 2^52.
                let share = sign * count as f64 / more;
                let index = symbols.index(address);
                let part = match index.and_then(|index| symbols.0.get(index)) {
                    None => 0,
                    Some(symbol) if symbol.is_of_module() => 2,
                    Some(_) => 1,
                };
                parts[part] += share;
                *self.functions.entry(index).or_default() += share;
            }
        }
        self.parts.push(parts);
    }

    fn cost(self, symbols: &Symbols) -> Cost {
        let part = |number: usize| median(self.parts.iter().map(|parts| parts[number]).collect());
        let rounds: Vec<f64> = self.parts.iter().map(|parts| parts.iter().sum()).collect();
        #[allow(clippy::cast_precision_loss)] // A few rounds.
        let count = rounds.len() as f64;
        let function = |(index, sum): (&Option<usize>, &f64)| {
            Some(Function {
                name: symbols.0.get((*index)?)?.name.clone(),
                instructions: sum / count,
            })
        };
        let mut functions: Vec<Function> = self.functions.iter().filter_map(function).collect();
        functions.sort_by(|a, b| b.instructions.total_cmp(&a.instructions));
        functions.truncate(FUNCTIONS);
        Cost {
            total: median(rounds.clone()),
            programs: part(0),
            kernel: part(1),
            module: part(2),
            rounds,
            functions,
        }
    }
}

/// A symbol of the guest's kernel.
struct Symbol {
    address: u64,
    /// For a symbol of a module, with the module's name in brackets.
    name: String,
}

impl Symbol {
    fn is_of_module(&self) -> bool {
        self.name.ends_with("[vdma]")
    }
}

/// The symbols of the guest's kernel and modules, by address.
struct Symbols(Vec<Symbol>);

impl Symbols {
    fn read(vm: &mut Vm) -> Result<Self> {
        let _step = progress::step("reading the kernel's symbols");
        let text = sh(vm, &["grep", "-i", " t ", "/proc/kallsyms"], LIMIT)?;
        let symbols = Self::parse(&text);
        ensure!(
            symbols.0.iter().any(Symbol::is_of_module),
            "/proc/kallsyms has no symbols of vdma"
        );
        Ok(symbols)
    }

    fn parse(text: &str) -> Self {
        let mut symbols: Vec<Symbol> = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                let name = words.nth(1)?;
                let module = words
                    .next()
                    .map_or(String::new(), |module| format!(" {module}"));
                Some(Symbol {
                    address,
                    name: format!("{}{module}", shorter(name)),
                })
            })
            .collect();
        symbols.sort_by_key(|symbol| symbol.address);
        Self(symbols)
    }

    /// Returns the symbol that `address` belongs to; `None` for code of a program.
    fn index(&self, address: u64) -> Option<usize> {
        let behind = self.0.partition_point(|symbol| symbol.address <= address);
        behind.checked_sub(1)
    }
}

/// Shortens a mangled name of Rust (`_R…`) to its last identifiers.
fn shorter(name: &str) -> String {
    if !name.starts_with("_R") {
        return name.to_owned();
    }
    // Identifiers are preceded by their length; the last ones name the function.
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = &rest[start..];
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let length: usize = rest[..digits].parse().unwrap_or(0);
        let begin = digits + usize::from(rest[digits..].starts_with('_'));
        match rest.get(begin..begin + length) {
            Some(part)
                if length > 1
                    && part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') =>
            {
                parts.push(part);
                rest = &rest[begin + length..];
            }
            _ => rest = &rest[digits..],
        }
    }
    let last = parts.len().saturating_sub(4);
    parts[last..].join("::")
}

/// The table, with a line for each job.
pub(crate) fn table(counts: &Instructions) -> String {
    let mut text = format!(
        "kernel {}, tcg: guest instructions per request, medians of {} rounds\n\n\
         {:<46} {:<10} {:>8} {:>8} {:>8} {:>8} {:>6} {:>9}\n",
        counts.kernel,
        counts.rounds,
        "job",
        "device",
        "all",
        "program",
        "kernel",
        "module",
        "ratio",
        "target"
    );
    for comparison in &counts.comparisons {
        let target = comparison.target.map_or(String::new(), |target| {
            let met = comparison.ratio <= target;
            format!("<={target} {}", if met { "ok" } else { "no" })
        });
        for (device, cost, end) in [
            (
                "vdma",
                &comparison.device,
                format!(" {:>6.2} {target:>9}", comparison.ratio),
            ),
            ("virtio-blk", &comparison.peer, String::new()),
        ] {
            let numbers: String = [cost.total, cost.programs, cost.kernel, cost.module]
                .iter()
                // Noise can make a small number negative.
                .map(|number| format!(" {:>8.0}", number.max(0.0)))
                .collect();
            let line = format!("{:<46} {device:<10}{numbers}{end}", comparison.job);
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ffffffff81000000 T _text\nffffffff81000100 t do_it\n\
        ffffffffc0000000 t _RNvMs_NtCs1a_4vdma5queueNtB4_5Queue4reap\t[vdma]\n";

    #[test]
    fn addresses_belong_to_the_preceding_symbol() {
        let symbols = Symbols::parse(TEXT);
        let name = |address| {
            symbols
                .index(address)
                .map(|index| symbols.0[index].name.as_str())
        };
        assert_eq!(name(0x7fff_0000_0000), None);
        assert_eq!(name(0xffff_ffff_8100_00ff), Some("_text"));
        assert_eq!(name(0xffff_ffff_8100_0100), Some("do_it"));
        assert_eq!(
            name(0xffff_ffff_c000_0001),
            Some("vdma::queue::Queue::reap [vdma]")
        );
        assert!(symbols.0[2].is_of_module() && !symbols.0[1].is_of_module());
    }

    #[test]
    fn the_difference_of_two_runs_is_divided_by_the_requests() {
        let symbols = Symbols::parse(TEXT);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("counts");
        let mut recorder = instruction_counter::Recorder::create(&path).unwrap();
        let counts = Counts::open(&path).unwrap();
        let program = recorder.record(0x1000, 2).unwrap();
        let module = recorder.record(0xffff_ffff_c000_0010, 4).unwrap();
        let run = |requests: u32| {
            let before = counts.snapshot();
            for _ in 0..100 + requests {
                program.enter();
            }
            for _ in 0..requests {
                module.enter();
            }
            counts.snapshot().since(&before)
        };
        let mut rounds = Rounds::default();
        let few = run(SMALL.0);
        rounds.add(SMALL, &few, &run(SMALL.1), &symbols);
        let cost = rounds.cost(&symbols);
        assert!((cost.total - 6.0).abs() < 1e-6 && (cost.programs - 2.0).abs() < 1e-6);
        assert!((cost.module - 4.0).abs() < 1e-6 && cost.kernel.abs() < 1e-6);
        assert_eq!(cost.functions.len(), 1);
    }
}
