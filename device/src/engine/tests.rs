//! The engine against a byte-array oracle: results, and everything that must not change.

use std::sync::Arc;

use proptest::prelude::*;
use vdma_protocol::{Operation, RequestHeader, Status};
use vm_memory::VolatileSlice;

use super::{Engine, MAX_TRANSFER, Outcome, Segments};
use crate::memory::{Backing, DeviceMemory};

const DEVICE: usize = 64 << 10;
const GUEST: usize = 96 << 10;

/// Device memory and guest memory as two arrays, and the same operations written down naively.
#[derive(Clone)]
struct Oracle {
    device: Vec<u8>,
    guest: Vec<u8>,
}

/// A piece of guest memory: offset and length.
type Piece = (usize, usize);

fn bytes_of(guest: &[u8], pieces: &[Piece]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|&(at, length)| guest[at..at + length].iter().copied())
        .collect()
}

fn scatter(guest: &mut [u8], pieces: &[Piece], data: &[u8]) {
    let mut rest = data;
    for &(at, length) in pieces {
        let (now, later) = rest.split_at(length);
        guest[at..at + length].copy_from_slice(now);
        rest = later;
    }
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| piece.1 as u64).sum()
}

/// Bit by bit, as in the definition (polynomial 0x1EDC6F41, reflected).
fn crc32c(seed: u32, data: &[u8]) -> u64 {
    let mut crc = !seed;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    u64::from(!crc)
}

impl Oracle {
    fn execute(&mut self, header: &RequestHeader, out: &[Piece], inn: &[Piece]) -> Outcome {
        let Some(operation) = Operation::from_code(header.operation.get()) else {
            return Outcome::refused(Status::UNSUPPORTED);
        };
        if header.flags.get() != 0 {
            return Outcome::refused(Status::BAD_FLAGS);
        }
        let (offset, length) = (header.offset.get(), header.length.get());
        let argument = header.argument.get();
        let has = |list: &[Operation]| list.contains(&operation);
        use Operation::*;
        let wants_out = has(&[Write, WriteCrc32c, Compare, Copy, Crc32cGuest]);
        let wants_in = has(&[Read, ReadCrc32c, Copy, FillGuest]);
        if length > u64::from(MAX_TRANSFER)
            || total(out) != if wants_out { length } else { 0 }
            || total(inn) != if wants_in { length } else { 0 }
        {
            return Outcome::refused(Status::BAD_LENGTH);
        }
        let inside = |at: u64| {
            at.checked_add(length)
                .is_some_and(|end| end <= DEVICE as u64)
        };
        let on_device = !has(&[Nop, Flush, Copy, FillGuest, Crc32cGuest]);
        if on_device && !inside(offset) || operation == Move && !inside(argument) {
            return Outcome::refused(Status::BAD_RANGE);
        }
        let n = length as usize;
        let at = if on_device { offset as usize } else { 0 };
        let pattern: Vec<u8> = argument.to_le_bytes().into_iter().cycle().take(n).collect();
        let seed = argument as u32;
        let mut value = 0;
        match operation {
            Nop | Flush => {}
            Read => scatter(&mut self.guest, inn, &self.device[at..at + n]),
            Write => self.device[at..at + n].copy_from_slice(&bytes_of(&self.guest, out)),
            Copy => {
                let data = bytes_of(&self.guest, out);
                scatter(&mut self.guest, inn, &data);
            }
            Move => self
                .device
                .copy_within(argument as usize..argument as usize + n, at),
            Fill => self.device[at..at + n].copy_from_slice(&pattern),
            FillGuest => scatter(&mut self.guest, inn, &pattern),
            Compare => {
                let data = bytes_of(&self.guest, out);
                let pairs = data.iter().zip(&self.device[at..at + n]);
                value = pairs.take_while(|(a, b)| a == b).count() as u64;
            }
            Crc32c => value = crc32c(seed, &self.device[at..at + n]),
            Crc32cGuest => value = crc32c(seed, &bytes_of(&self.guest, out)),
            ReadCrc32c => {
                value = crc32c(seed, &self.device[at..at + n]);
                scatter(&mut self.guest, inn, &self.device[at..at + n]);
            }
            WriteCrc32c => {
                let data = bytes_of(&self.guest, out);
                value = crc32c(seed, &data);
                self.device[at..at + n].copy_from_slice(&data);
            }
            Discard => self.device[at..at + n].fill(0),
        }
        Outcome {
            status: Status::OK,
            transferred: length as u32,
            value,
        }
    }
}

/// Cuts `length` bytes into pieces that do not overlap, with gaps, from `base` on.
fn cut(base: usize, length: usize, cuts: &[(u16, u8)]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let (mut at, mut left) = (base, length);
    for &(size, gap) in cuts {
        let size = usize::from(size).min(left);
        pieces.push((at, size));
        at += size + usize::from(gap);
        left -= size;
    }
    pieces.push((at, left));
    pieces
}

#[derive(Clone, Debug)]
struct Step {
    header: RequestHeader,
    outgoing: Vec<Piece>,
    incoming: Vec<Piece>,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![0usize..64, 0usize..20_000];
    let offset = prop_oneof![
        8 => 0..DEVICE as u64,
        1 => Just(u64::MAX),
        1 => (DEVICE as u64 - 30)..DEVICE as u64 + 30
    ];
    let cuts = || prop::collection::vec((0u16..5000, 0u8..100), 0..8);
    let code = prop_oneof![20 => 0u16..14, 1 => any::<u16>()];
    let flags = prop_oneof![30 => Just(0u16), 1 => any::<u16>()];
    // Now and then a part is a byte longer than the request says.
    let extra = prop_oneof![20 => Just(0usize), 1 => Just(1usize)];
    let argument = prop_oneof![any::<u64>(), 0..DEVICE as u64];
    (
        code,
        flags,
        offset,
        length,
        argument,
        (cuts(), cuts()),
        extra,
    )
        .prop_map(
            |(code, flags, offset, length, argument, (out, inn), extra)| {
                let operation = Operation::from_code(code).unwrap_or(Nop);
                let mut header = RequestHeader::new(operation, offset, length as u64, argument);
                header.operation = code.into();
                header.flags = flags.into();
                use Operation::*;
                let has = |list: &[Operation]| list.contains(&operation);
                let mut step = Step {
                    header,
                    outgoing: vec![],
                    incoming: vec![],
                };
                if has(&[Write, WriteCrc32c, Compare, Copy, Crc32cGuest]) {
                    step.outgoing = cut(0, length + extra, &out);
                }
                if has(&[Read, ReadCrc32c, Copy, FillGuest]) {
                    // Disjoint from the outgoing data: overlap has tests of its own.
                    step.incoming = cut(48 << 10, length + extra, &inn);
                }
                step
            },
        )
}

struct Bench {
    engine: Engine,
    guest: Vec<u8>,
}

impl Bench {
    fn new(oracle: &Oracle) -> Self {
        let memory = DeviceMemory::open(Backing::Memfd, Some(DEVICE as u64)).unwrap();
        memory
            .slice(0, DEVICE as u64)
            .unwrap()
            .copy_from(&oracle.device);
        Self {
            engine: Engine::new(Arc::new(memory)),
            guest: oracle.guest.clone(),
        }
    }

    fn execute(&mut self, step: &Step) -> Outcome {
        let whole = VolatileSlice::from(&mut self.guest[..]);
        let slices = |pieces: &[Piece]| -> Vec<VolatileSlice<'_>> {
            pieces
                .iter()
                .map(|&(at, length)| whole.subslice(at, length).unwrap())
                .collect()
        };
        let (outgoing, incoming) = (slices(&step.outgoing), slices(&step.incoming));
        self.engine.execute(
            &step.header,
            &Segments::new(&outgoing),
            &Segments::new(&incoming),
        )
    }

    fn device(&self) -> Vec<u8> {
        let mut bytes = vec![0; DEVICE];
        let memory = self.engine.memory();
        memory.slice(0, DEVICE as u64).unwrap().copy_to(&mut bytes);
        bytes
    }
}

fn oracle() -> Oracle {
    let noise = |length, factor: usize| {
        (0..length)
            .map(|i: usize| ((i * factor) >> 3) as u8)
            .collect()
    };
    Oracle {
        device: noise(DEVICE, 7),
        guest: noise(GUEST, 13),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_sequences_match_the_oracle(steps in prop::collection::vec(step(), 1..12)) {
        let mut oracle = oracle();
        let mut bench = Bench::new(&oracle);
        for step in &steps {
            let expected = oracle.execute(&step.header, &step.outgoing, &step.incoming);
            prop_assert_eq!(bench.execute(step), expected, "{:?}", step);
            prop_assert!(bench.device() == oracle.device, "device memory after {:?}", step);
            prop_assert!(bench.guest == oracle.guest, "guest memory after {:?}", step);
        }
    }

    #[test]
    fn segments_are_the_concatenation_of_their_pieces(
        cuts in prop::collection::vec((0u16..50, 0u8..3), 0..20),
        skip in 0usize..300,
        keep in 0u64..400,
    ) {
        let mut memory: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        let pieces = cut(0, 300, &cuts);
        let expected = bytes_of(&memory, &pieces);
        let whole = VolatileSlice::from(&mut memory[..]);
        let list: Vec<_> = pieces.iter().map(|&(a, l)| whole.subslice(a, l).unwrap()).collect();
        let mut segments = Segments::new(&list);
        prop_assert_eq!(segments.len(), 300);
        prop_assert!(segments.advance(skip));
        segments.truncate(keep);
        let mut seen = Vec::new();
        for piece in segments.pieces() {
            let mut bytes = vec![0; piece.len()];
            piece.copy_to(&mut bytes);
            seen.extend(bytes);
        }
        let end = 300.min(skip + keep as usize);
        prop_assert_eq!(&seen, &expected[skip..end]);
        prop_assert_eq!(segments.is_empty(), seen.is_empty());
        prop_assert!(!segments.advance(301));
    }
}

#[test]
fn crc32c_matches_the_published_check_value() {
    let mut oracle = oracle();
    oracle.guest[..9].copy_from_slice(b"123456789");
    let mut bench = Bench::new(&oracle);
    let step = Step {
        header: RequestHeader::new(Operation::Crc32cGuest, 0, 9, 0),
        outgoing: vec![(0, 4), (4, 5)],
        incoming: vec![],
    };
    assert_eq!(bench.execute(&step).value, 0xe306_9283);
    // In two requests, the second of which continues the first.
    let part = |length, argument, piece| Step {
        header: RequestHeader::new(Operation::Crc32cGuest, 0, length, argument),
        outgoing: vec![piece],
        incoming: vec![],
    };
    let first = bench.execute(&part(3, 0, (0, 3))).value;
    // The upper half of the argument is ignored.
    let second = part(6, first | 0xdead_beef << 32, (3, 6));
    assert_eq!(bench.execute(&second).value, 0xe306_9283);
}

#[test]
fn overlapping_moves_behave_as_memmove() {
    let mut oracle = oracle();
    let mut bench = Bench::new(&oracle);
    for (to, from, length) in [
        (1, 0, 50_000),
        (0, 1, 50_000),
        (4096, 0, 40_000),
        (7, 7, 100),
    ] {
        let header = RequestHeader::new(Operation::Move, to, length, from);
        let step = Step {
            header,
            outgoing: vec![],
            incoming: vec![],
        };
        assert_eq!(bench.execute(&step), oracle.execute(&header, &[], &[]));
        assert!(bench.device() == oracle.device);
    }
}

#[test]
fn overlapping_copies_in_guest_memory_behave_as_memmove() {
    for (from, to) in [(0, 1), (1, 0), (0, 5000), (5000, 0), (3, 3)] {
        let mut oracle = oracle();
        let mut bench = Bench::new(&oracle);
        let header = RequestHeader::new(Operation::Copy, 0, 20_000, 0);
        let step = Step {
            header,
            outgoing: vec![(from, 20_000)],
            incoming: vec![(to, 20_000)],
        };
        assert_eq!(bench.execute(&step).status, Status::OK);
        oracle.guest.copy_within(from..from + 20_000, to);
        assert!(bench.guest == oracle.guest);
    }
}

#[test]
fn discard_frees_whole_pages_and_zeroes_the_rest() {
    use std::os::unix::fs::MetadataExt;
    let memory = DeviceMemory::open(Backing::Memfd, Some(1 << 20)).unwrap();
    let memory = Arc::new(memory);
    let mut engine = Engine::new(Arc::clone(&memory));
    let mut run = |operation, offset, length| {
        let header = RequestHeader::new(operation, offset, length, u64::MAX);
        engine.execute(&header, &Segments::new(&[]), &Segments::new(&[]))
    };
    let blocks = || memory.file().metadata().unwrap().blocks();
    assert_eq!(run(Operation::Fill, 0, 1 << 20).status, Status::OK);
    assert_eq!(blocks(), 2048);
    // Parts of pages are zeroed, whole pages returned.
    assert_eq!(
        run(Operation::Discard, 100, (1 << 20) - 200).status,
        Status::OK
    );
    assert_eq!(blocks(), 16);
    let mut bytes = vec![0u8; 1 << 20];
    memory.slice(0, 1 << 20).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes[..100], [0xff; 100]);
    assert!(bytes[100..(1 << 20) - 100].iter().all(|&byte| byte == 0));
    assert!(bytes[(1 << 20) - 100..].iter().all(|&byte| byte == 0xff));
}
