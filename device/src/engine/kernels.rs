//! The inner loops of the operations. Callers have checked that source and target have the same
//! length.

use vm_memory::VolatileSlice;

use super::segments::Segments;

/// Bytes inspected at a time: few enough for the first-level cache.
pub(super) const BOUNCE_BYTES: usize = 16 << 10;

/// Private memory into which bytes are copied before they are inspected.
#[derive(Debug)]
pub(super) struct BounceBuffer(Box<[u8]>);

impl BounceBuffer {
    pub(super) fn new() -> Self {
        Self(vec![0; BOUNCE_BYTES].into_boxed_slice())
    }
}

/// `count` bytes of `slice` at `at`, which the caller has checked to be inside; empty otherwise.
fn part<'m>(slice: &VolatileSlice<'m>, at: usize, count: usize) -> VolatileSlice<'m> {
    let inside = slice.subslice(at, count);
    debug_assert!(inside.is_ok(), "{at}+{count} of {}", slice.len());
    inside.unwrap_or_else(|_| VolatileSlice::from(&mut [][..]))
}

/// Pairs each piece of `segments` with the bytes of `device` that correspond to it.
pub(super) fn with_device<'m, 'd>(
    segments: &Segments<'_, 'm>,
    device: &VolatileSlice<'d>,
) -> impl Iterator<Item = (VolatileSlice<'m>, VolatileSlice<'d>)> {
    let mut at = 0;
    segments.pieces().map(move |piece| {
        let ours = part(device, at, piece.len());
        at += piece.len();
        (piece, ours)
    })
}

/// Copies each pair's first to its second.
pub(super) fn copy<'m, 'n>(pairs: impl Iterator<Item = (VolatileSlice<'m>, VolatileSlice<'n>)>) {
    for (source, target) in pairs {
        source.copy_to_volatile_slice(target);
    }
}

/// Copies outgoing to incoming data, whose pieces may be divided differently.
pub(super) fn copy_across(outgoing: &Segments<'_, '_>, incoming: &Segments<'_, '_>) {
    let mut targets = incoming.pieces();
    let mut target: Option<VolatileSlice<'_>> = None;
    for source in outgoing.pieces() {
        let mut done = 0;
        while done < source.len() {
            let Some(free) = target.take().or_else(|| targets.next()) else {
                return;
            };
            let count = free.len().min(source.len() - done);
            part(&source, done, count).copy_to_volatile_slice(part(&free, 0, count));
            done += count;
            if count < free.len() {
                target = Some(part(&free, count, free.len() - count));
            }
        }
    }
}

/// Repeats the eight bytes of `pattern` over the pieces.
pub(super) fn fill<'m>(
    bounce: &mut BounceBuffer,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
    pattern: u64,
) {
    const PATTERN: usize = size_of::<u64>();
    let bounce = &mut bounce.0;
    for chunk in bounce.chunks_exact_mut(PATTERN) {
        chunk.copy_from_slice(&pattern.to_le_bytes());
    }
    let mut phase = 0;
    for piece in pieces {
        let mut done = 0;
        while done < piece.len() {
            let count = (piece.len() - done).min(BOUNCE_BYTES - phase);
            let chunk = part(&piece, done, count);
            chunk.copy_from(&bounce[phase..phase + count]);
            done += count;
            phase = (phase + count) % PATTERN;
        }
    }
}

/// Number of equal bytes before the first difference between outgoing data and device memory.
pub(super) fn compare(
    [ours, theirs]: [&mut BounceBuffer; 2],
    outgoing: &Segments<'_, '_>,
    device: &VolatileSlice<'_>,
) -> u64 {
    let mut equal = 0;
    for piece in outgoing.pieces() {
        let mut done = 0;
        while done < piece.len() {
            let count = (piece.len() - done).min(BOUNCE_BYTES);
            let ours = &mut ours.0[..count];
            let theirs = &mut theirs.0[..count];
            part(device, equal, count).copy_to(ours);
            part(&piece, done, count).copy_to(theirs);
            if ours != theirs {
                let same = ours.iter().zip(theirs.iter()).take_while(|(a, b)| a == b);
                return (equal + same.count()) as u64;
            }
            done += count;
            equal += count;
        }
    }
    equal as u64
}

/// The checksum of the pieces, continued from `seed`.
pub(super) fn checksum<'m>(
    bounce: &mut BounceBuffer,
    pieces: impl Iterator<Item = VolatileSlice<'m>>,
    seed: u64,
) -> u64 {
    let mut crc = low_half(seed);
    for piece in pieces {
        let mut done = 0;
        while done < piece.len() {
            let chunk = &mut bounce.0[..(piece.len() - done).min(BOUNCE_BYTES)];
            part(&piece, done, chunk.len()).copy_to(chunk);
            crc = crc32c::crc32c_append(crc, chunk);
            done += chunk.len();
        }
    }
    u64::from(crc)
}

/// Copies each pair's first to its second; the checksum is that of the very bytes that were
/// written, even if the source changes meanwhile.
pub(super) fn copy_checksum<'m, 'n>(
    bounce: &mut BounceBuffer,
    pairs: impl Iterator<Item = (VolatileSlice<'m>, VolatileSlice<'n>)>,
    seed: u64,
) -> u64 {
    let mut crc = low_half(seed);
    for (source, target) in pairs {
        let mut done = 0;
        while done < source.len() {
            let chunk = &mut bounce.0[..(source.len() - done).min(BOUNCE_BYTES)];
            part(&source, done, chunk.len()).copy_to(chunk);
            crc = crc32c::crc32c_append(crc, chunk);
            part(&target, done, chunk.len()).copy_from(chunk);
            done += chunk.len();
        }
    }
    u64::from(crc)
}

#[allow(clippy::cast_possible_truncation)] // The upper half is specified to be ignored.
const fn low_half(value: u64) -> u32 {
    value as u32
}
