// SPDX-License-Identifier: GPL-2.0

//! What is put into a virtqueue: a descriptor chain of header, data, response and data.

use core::{
    cell::UnsafeCell,
    mem::size_of,
    ptr::{self, NonNull},
};

use kernel::{
    bindings,
    prelude::*,
    transmute::{AsBytes, FromBytes},
};

use crate::linux::{
    page_list::{PageList, PageOwner},
    scatterlist::SgEntry,
    slab::{Cached, SlabBox},
};

/// The scatter-gather lists of a chain: first those that the device reads, then those that it
/// writes.
pub(crate) struct SgLists {
    pub(super) lists: [*mut bindings::scatterlist; Self::MAX],
    pub(super) readable: usize,
    pub(super) writable: usize,
}

impl SgLists {
    const MAX: usize = 4;
}

/// Objects in a slab cache that can be put into a virtqueue.
///
/// # Safety
///
/// The lists of [`Chain::sg_lists`], and the memory that they name, stay valid as long as the
/// object exists and is not accessed; what is in the writable ones may be written to.
pub(crate) unsafe trait Chain: Cached + Unpin {
    /// The lists to hand to the device.
    fn sg_lists(&mut self) -> Result<SgLists>;
}

/// Bytes that the device writes, alone on their cache line: a line is mapped for one direction
/// only.
#[repr(C, align(64))]
struct DeviceWritable<R>(UnsafeCell<R>);

/// A header that the device reads, data that it reads, a response that it writes, and data that it
/// writes; and what belongs to them.
///
/// In a queue it belongs to the queue and the device; before and after to the owner of the box.
#[repr(C)]
pub(crate) struct DataChain<H, R, O: PageOwner, T> {
    response: DeviceWritable<R>,
    pub(crate) header: H,
    header_sg: SgEntry,
    response_sg: SgEntry,
    /// Data that the device reads.
    pub(crate) outgoing: PageList<O>,
    /// Data that the device writes.
    pub(crate) incoming: PageList<O>,
    pub(crate) state: T,
}

// SAFETY: A shared reference reads the response only, with one volatile access.
unsafe impl<H: Sync, R: Send + Sync, O: PageOwner, T: Sync> Sync for DataChain<H, R, O, T> {}

impl<H, R, O: PageOwner, T> DataChain<H, R, O, T>
where
    H: AsBytes,
    R: FromBytes + Copy,
    Self: Cached,
{
    /// Allocates a chain without data. `response` is what is there if the device writes none. May
    /// sleep.
    #[inline(always)]
    pub(crate) fn create<E>(header: H, response: R, state: impl Init<T, E>) -> Result<SlabBox<Self>>
    where
        Error: From<E>,
    {
        SlabBox::new::<Error>(try_init!(Self {
            response: DeviceWritable(UnsafeCell::new(response)),
            header,
            header_sg: SgEntry::empty(),
            response_sg: SgEntry::empty(),
            outgoing: PageList::none(),
            incoming: PageList::none(),
            state <- state,
        }? Error))
    }

    /// The response as the device has left it.
    #[inline]
    pub(crate) fn response(&self) -> R {
        // SAFETY: The response is in this object, and any bytes are an `R`. A device that breaks
        // the rules may still write to it, hence one volatile read, and only the copy is used.
        unsafe { ptr::read_volatile(self.response.0.get()) }
    }
}

// SAFETY: Header and response are in the object, which is in a slab cache and does not move while
// it is not accessed; the lists belong to the page lists in it, which hold the pages. What is
// handed out for writing is the response, an `UnsafeCell` of any bytes, and pages that may be
// written to.
unsafe impl<H, R, O: PageOwner, T> Chain for DataChain<H, R, O, T>
where
    H: AsBytes,
    R: FromBytes + Copy,
    Self: Cached + Unpin,
{
    #[inline]
    fn sg_lists(&mut self) -> Result<SgLists> {
        if self.incoming.entries() > 0 && !self.incoming.is_writable() {
            return Err(EINVAL);
        }
        // SAFETY: The header stays where it is as long as the chain is in a queue, and so does the
        // entry.
        unsafe { self.header_sg.set(&self.header) };
        // SAFETY: The response stays where it is as long as the chain is in a queue, and so does
        // the entry.
        unsafe { self.response_sg.set(self.response.0.get()) };
        let mut sg = SgLists {
            lists: [ptr::null_mut(); SgLists::MAX],
            readable: 1,
            writable: 1,
        };
        let [first, second, third, fourth] = &mut sg.lists;
        *first = self.header_sg.as_mut_ptr();
        let outgoing = self.outgoing.as_sg();
        let (response, incoming) = if outgoing.is_null() {
            (second, third)
        } else {
            *second = outgoing;
            sg.readable = 2;
            (third, fourth)
        };
        *response = self.response_sg.as_mut_ptr();
        let list = self.incoming.as_sg();
        if !list.is_null() {
            *incoming = list;
            sg.writable = 2;
        }
        Ok(sg)
    }
}

/// The token of a chain in a queue.
#[inline]
pub(super) fn into_token<C: Chain>(chain: SlabBox<C>) -> NonNull<kernel::ffi::c_void> {
    const { assert!(size_of::<SlabBox<C>>() == size_of::<usize>()) };
    chain.into_raw().cast()
}

/// The chain of a token.
///
/// # Safety
///
/// `token` comes from [`into_token`], and is taken back once.
#[inline]
pub(super) unsafe fn from_token<C: Chain>(token: NonNull<kernel::ffi::c_void>) -> SlabBox<C> {
    // SAFETY: The caller vouches for the token.
    unsafe { SlabBox::from_raw(token.cast()) }
}
