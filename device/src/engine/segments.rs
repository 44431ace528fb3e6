//! A scatter-gather list of which a prefix has been consumed.

use vm_memory::VolatileSlice;

/// Bytes spread over several pieces of memory, in order.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'s, 'm> {
    list: &'s [VolatileSlice<'m>],
    /// Bytes of the first segment that have been consumed.
    skip: usize,
    length: u64,
}

impl<'s, 'm> Segments<'s, 'm> {
    /// All bytes of `list`. Segments of length 0 are allowed.
    #[must_use]
    pub fn new(list: &'s [VolatileSlice<'m>]) -> Self {
        Self {
            list,
            skip: 0,
            length: list.iter().map(|segment| segment.len() as u64).sum(),
        }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The non-empty pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = VolatileSlice<'m>> + use<'s, 'm> {
        let mut skip = self.skip;
        let mut left = self.length;
        self.list.iter().filter_map(move |segment| {
            let begin = std::mem::take(&mut skip).min(segment.len());
            let count = usize::try_from(left).map_or(segment.len() - begin, |left| {
                left.min(segment.len() - begin)
            });
            left -= count as u64;
            let piece = segment.subslice(begin, count).ok()?;
            (count > 0).then_some(piece)
        })
    }

    /// Keeps only the first `count` bytes, or all when there are fewer.
    pub fn truncate(&mut self, count: u64) {
        self.length = self.length.min(count);
    }

    /// Consumes the first `N` bytes, each read once; `None`, with nothing consumed, when there are
    /// fewer.
    pub fn read<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.walk(N, |piece, at| {
            piece.copy_to(&mut bytes[at..at + piece.len()]);
        })?;
        Some(bytes)
    }

    /// Skips the first `count` bytes; `false`, with nothing skipped, when there are fewer.
    #[must_use]
    pub fn advance(&mut self, count: usize) -> bool {
        self.walk(count, |_, _| {}).is_some()
    }

    /// Writes `bytes` over the first bytes; `false`, with nothing written, when there are fewer.
    #[must_use]
    pub fn write(mut self, bytes: &[u8]) -> bool {
        self.walk(bytes.len(), |piece, at| {
            piece.copy_from(&bytes[at..at + piece.len()]);
        })
        .is_some()
    }

    /// Consumes the first `count` bytes, after `visit` has seen each piece and its position.
    fn walk(
        &mut self,
        count: usize,
        mut visit: impl FnMut(VolatileSlice<'m>, usize),
    ) -> Option<()> {
        let rest = self.length.checked_sub(count as u64)?;
        let mut at = 0;
        while at < count {
            let segment = self.list.first()?;
            let take = (segment.len() - self.skip).min(count - at);
            visit(segment.subslice(self.skip, take).ok()?, at);
            at += take;
            self.skip += take;
            if self.skip == segment.len() {
                self.list = &self.list[1..];
                self.skip = 0;
            }
        }
        self.length = rest;
        Some(())
    }
}
