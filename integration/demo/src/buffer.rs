//! Memory to pin: private pages of the process.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

/// Alignment of buffers: that of huge pages, so that the kernel may back a buffer with them, which
/// makes it physically contiguous.
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
        // SAFETY: The allocation has `layout.size()` initialized bytes and belongs to the buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: The allocation has `layout.size()` initialized bytes and belongs to the buffer,
        // and `&mut self` makes the reference unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated with this layout and is not used after this.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
