// SPDX-License-Identifier: GPL-2.0

//! DMA buffers: memory that is made ready for DMA once and used in many requests.
//!
//! Registered ones are a user's pages, pinned for good (`FOLL_LONGTERM`) and charged to
//! `RLIMIT_MEMLOCK`. Allocated ones are pages of the driver's own, which user space maps.

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, Mutex, UniqueArc},
};

use crate::linux::{
    anon_file::{AnonymousFile, Table},
    list::Linked,
    page_list::PageOwner,
    page_runs::PageRuns,
    vma::{Fault, FaultResult, Mappable, NewMapping},
    workqueue::{Deferred, DeferredQueue},
};

/// Most buffers that an open file may have.
const MAX_BUFFERS: usize = 1024;

/// Memory for DMA. Dropped in process context: see [`RELEASED`].
pub(crate) struct DmaBuffer {
    pages: PageRuns,
    /// The next one in the list of those that wait to be dropped.
    next: Option<Pin<UniqueArc<DmaBuffer>>>,
}

impl DmaBuffer {
    fn new(pages: PageRuns) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { pages, next: None }, GFP_KERNEL_ACCOUNT)?)
    }

    /// Pins `length` bytes of the current task's memory at `address`, for good: see
    /// [`PageRuns::pin`]. May sleep.
    pub(crate) fn register(address: u64, length: u64) -> Result<Arc<Self>> {
        let address = usize::try_from(address).map_err(|_| EFAULT)?;
        let length = usize::try_from(length).map_err(|_| EINVAL)?;
        Self::new(PageRuns::pin(address, length)?)
    }

    /// Allocates at least `length` bytes: see [`PageRuns::allocate`]. May sleep.
    pub(crate) fn allocate(length: u64) -> Result<Arc<Self>> {
        let length = usize::try_from(length).map_err(|_| EINVAL)?;
        Self::new(PageRuns::allocate(length)?)
    }

    /// Bytes.
    pub(crate) fn length(&self) -> usize {
        self.pages.length()
    }

    /// Runs of neighbouring pages.
    pub(crate) fn runs(&self) -> usize {
        self.pages.count()
    }
}

/// Buffers whose last user was a request, which ends in interrupt context. Dropping them takes
/// folio locks, and that of the address space that they are charged to.
pub(crate) static RELEASED: DeferredQueue<Pin<UniqueArc<DmaBuffer>>> = DeferredQueue::new();

impl Linked for Pin<UniqueArc<DmaBuffer>> {
    fn set_next(&mut self, next: Option<Self>) {
        self.as_mut().get_mut().next = next;
    }

    fn take_next(&mut self) -> Option<Self> {
        self.as_mut().get_mut().next.take()
    }
}

impl Deferred for Pin<UniqueArc<DmaBuffer>> {
    fn run(self) {
        drop(self);
    }
}

impl PageOwner for DmaBuffer {
    fn page_runs(&self) -> &PageRuns {
        &self.pages
    }

    fn release(this: Arc<Self>) {
        if let Some(last) = Arc::into_unique_or_drop(this) {
            // Without a worker the module is about to be unloaded, and this is a task.
            let _ = RELEASED.push(last);
        }
    }
}

/// A file whose mappings are an allocated buffer.
pub(crate) struct BufferFile(Arc<DmaBuffer>);

impl BufferFile {
    /// A file for `buffer`; `EINVAL` for a registered one, whose pages belong to mappings already.
    pub(crate) fn new(buffer: Arc<DmaBuffer>) -> Result<Self> {
        if buffer.pages.is_mappable() {
            Ok(Self(buffer))
        } else {
            Err(EINVAL)
        }
    }

    pub(crate) fn buffer(&self) -> &Arc<DmaBuffer> {
        &self.0
    }
}

static TABLE: Table<BufferFile> = Table::new();

impl AnonymousFile for BufferFile {
    const NAME: &'static CStr = c"[vdma-buffer]";

    fn table() -> &'static Table<Self> {
        &TABLE
    }
}

impl crate::linux::chardev::Mmap for BufferFile {
    fn map(&self, mapping: NewMapping<'_, Self>) -> Result {
        let end = mapping
            .offset()
            .and_then(|offset| offset.checked_add(mapping.len() as u64));
        if end.is_none_or(|end| end > self.0.length() as u64) {
            return Err(EINVAL);
        }
        mapping.fault_pages()
    }
}

impl Mappable for BufferFile {
    fn mapped(&self) -> Result {
        Ok(())
    }

    fn duplicated(&self) {}

    fn unmapped(&self) {}

    fn fault<'a>(&self, fault: Fault<'a>) -> FaultResult<'a> {
        let number = (fault.offset() / PAGE_SIZE as u64) as usize;
        fault.insert_page(&self.0.pages, number)
    }
}

/// The buffers of an open file, by their ids.
#[pin_data]
pub(crate) struct BufferTable {
    #[pin]
    slots: Mutex<KVec<Option<Arc<DmaBuffer>>>>,
}

impl BufferTable {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self { slots <- kernel::new_mutex!(KVec::new(), "vdma_buffers") })
    }

    /// Gives `buffer` the lowest free id; `ENOSPC` when there are too many. May sleep.
    pub(crate) fn insert(&self, buffer: Arc<DmaBuffer>) -> Result<u32> {
        let mut slots = self.slots.lock();
        let free = slots
            .iter_mut()
            .enumerate()
            .find(|(_, slot)| slot.is_none());
        if let Some((id, slot)) = free {
            *slot = Some(buffer);
            return Ok(id as u32);
        }
        let id = slots.len();
        if id >= MAX_BUFFERS {
            return Err(ENOSPC);
        }
        slots.push(Some(buffer), GFP_KERNEL_ACCOUNT)?;
        Ok(id as u32)
    }

    /// The buffer with this id; `ENOENT`. May sleep.
    pub(crate) fn get(&self, id: u32) -> Result<Arc<DmaBuffer>> {
        self.slots
            .lock()
            .get(id as usize)
            .and_then(Clone::clone)
            .ok_or(ENOENT)
    }

    /// Takes the buffer with this id out; `ENOENT`. May sleep.
    pub(crate) fn remove(&self, id: u32) -> Result<Arc<DmaBuffer>> {
        self.slots
            .lock()
            .get_mut(id as usize)
            .and_then(Option::take)
            .ok_or(ENOENT)
    }

    /// How many there are. May sleep.
    pub(crate) fn count(&self) -> usize {
        self.slots.lock().iter().flatten().count()
    }
}
