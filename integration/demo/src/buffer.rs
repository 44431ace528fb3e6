//! Memory to pin: pages of the process's own.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// Alignment of buffers. Huge pages begin at such addresses, so that the kernel may back a buffer
/// with them, and then its pages are neighbours in physical memory as well.
const ALIGNMENT: usize = 2 << 20;

/// Zeroed bytes at an aligned address.
pub(crate) struct Buffer {
    start: NonNull<u8>,
    layout: Layout,
}

impl Buffer {
    /// Allocates `length` bytes; one for a length of 0.
    pub(crate) fn new(length: usize) -> anyhow::Result<Self> {
        let layout = Layout::from_size_align(length.max(1), ALIGNMENT)?;
        // SAFETY: The layout has at least one byte.
        let start = unsafe { alloc_zeroed(layout) };
        match NonNull::new(start) {
            Some(start) => Ok(Self { start, layout }),
            None => handle_alloc_error(layout),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: The allocation has so many initialized bytes and belongs to the buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: As above; `&mut self` makes the reference the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: Allocated with this layout, and not used any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
