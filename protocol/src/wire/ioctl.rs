// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the driver offers to user space beyond read, write and mmap: the `ioctl` calls and io_uring
//! commands of `/dev/vdmaN`. Structures are in the byte order of the machine and have no padding.

use core::mem::size_of;

/// The `type` byte of vdma's ioctl numbers.
pub const IOCTL_TYPE: u8 = 0xd5;

const DIRECTION_WRITE: u32 = 1;
const DIRECTION_READ: u32 = 2;

/// `_IOC(direction, IOCTL_TYPE, number, size)` of `asm-generic/ioctl.h`.
#[allow(clippy::cast_possible_truncation)] // The size is checked against the field's 14 bits.
const fn ioctl(direction: u32, number: u8, size: usize) -> u32 {
    assert!(size < 1 << 14);
    direction << 30 | (size as u32) << 16 | (IOCTL_TYPE as u32) << 8 | number as u32
}

/// Fills a [`DeviceInfo`].
pub const IOCTL_INFO: u32 = ioctl(DIRECTION_READ, 0, size_of::<DeviceInfo>());

/// Fills [`Statistics`] with the counts of the open file.
pub const IOCTL_FILE_STATISTICS: u32 = ioctl(DIRECTION_READ, 1, size_of::<Statistics>());

/// Fills [`Statistics`] with the counts of the device since the driver was bound to it.
pub const IOCTL_DEVICE_STATISTICS: u32 = ioctl(DIRECTION_READ, 2, size_of::<Statistics>());

/// Takes a [`Choice`], one of the `MAP_*` values: how later mappings of this open file are filled.
pub const IOCTL_MAP_MODE: u32 = ioctl(DIRECTION_WRITE, 3, size_of::<Choice>());

/// Takes a [`Choice`], one of the `CACHE_*` values: the cache attribute of all mappings of device
/// memory. `EBUSY` while one exists; `EPERM` without `CAP_SYS_ADMIN`.
pub const IOCTL_CACHE_MODE: u32 = ioctl(DIRECTION_WRITE, 4, size_of::<Choice>());

/// Runs a [`Command`], waits for it, and fills in its results. The call itself fails only when the
/// command was not run; [`Command::result`] says how it ended.
pub const IOCTL_RUN: u32 = ioctl(DIRECTION_READ | DIRECTION_WRITE, 5, size_of::<Command>());

/// Runs a [`Batch`] of commands, all at once, and waits for all of them.
pub const IOCTL_RUN_BATCH: u32 = ioctl(DIRECTION_READ | DIRECTION_WRITE, 6, size_of::<Batch>());

/// Pins memory of the caller long-term, as [`Registration`] says, and fills in its id.
pub const IOCTL_REGISTER_BUFFER: u32 = ioctl(
    DIRECTION_READ | DIRECTION_WRITE,
    7,
    size_of::<Registration>(),
);

/// Allocates memory for DMA, as [`Allocation`] says, and fills in its id and a file to map it with.
pub const IOCTL_ALLOCATE_BUFFER: u32 =
    ioctl(DIRECTION_READ | DIRECTION_WRITE, 8, size_of::<Allocation>());

/// Gives the memory behind a file of [`IOCTL_ALLOCATE_BUFFER`] (of another process, perhaps) an id
/// here: the `file` of an [`Allocation`] is read, its other fields are filled in.
pub const IOCTL_IMPORT_BUFFER: u32 =
    ioctl(DIRECTION_READ | DIRECTION_WRITE, 9, size_of::<Allocation>());

/// Takes a [`Choice`]: the id of a buffer to release; its memory is unpinned when the last request
/// that uses it has completed.
pub const IOCTL_RELEASE_BUFFER: u32 = ioctl(DIRECTION_WRITE, 10, size_of::<Choice>());

/// Fills a [`Trace`] with a file, to be mapped read-only: a [`TraceHeader`] and [`TraceRecord`]s,
/// written while there is such a file. `EPERM` without `CAP_SYS_ADMIN`: it shows the
/// requests of all users.
pub const IOCTL_TRACE: u32 = ioctl(DIRECTION_READ, 11, size_of::<Trace>());

/// Fills in an [`Explanation`]: the addresses of memory of the caller on its way to the device.
/// `EPERM` without `CAP_SYS_ADMIN`: it shows addresses of the kernel.
pub const IOCTL_EXPLAIN: u32 = ioctl(
    DIRECTION_READ | DIRECTION_WRITE,
    12,
    size_of::<Explanation>(),
);

/// Takes a [`Choice`]: an eventfd that is incremented with each transfer or command of this file
/// that ends, or [`NO_FILE`] to stop that.
pub const IOCTL_EVENTFD: u32 = ioctl(DIRECTION_WRITE, 13, size_of::<Choice>());

/// The `cmd_op` of an io_uring `URING_CMD`: runs the [`Command`] at the address in `addr` of the
/// submission. It is read before the submission returns; its results are written before the
/// completion, which carries [`Command::result`], and in a 32-byte completion [`Command::value`]
/// too.
pub const URING_RUN: u32 = IOCTL_RUN;

/// [`Choice::value`] that stands for no file.
pub const NO_FILE: u32 = u32::MAX;

/// Map mode: the whole range is mapped at once (`io_remap_pfn_range`). The mode of a new file.
pub const MAP_EAGER: u32 = 0;
/// Map mode: pages are mapped by the fault of the first access, huge ones where that is possible.
pub const MAP_LAZY: u32 = 1;

/// Cache attribute: write-back, as ordinary memory. The attribute of a new device.
pub const CACHE_WRITE_BACK: u32 = 0;
/// Cache attribute: write-combining.
pub const CACHE_WRITE_COMBINING: u32 = 1;
/// Cache attribute: uncached.
pub const CACHE_UNCACHED: u32 = 2;

/// The argument of calls that take one number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The number.
    pub value: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`Command::flags`]: `outgoing` is an offset in the buffer `outgoing_buffer`, not an address.
pub const COMMAND_OUTGOING_BUFFER: u16 = 1;
/// [`Command::flags`]: `incoming` is an offset in the buffer `incoming_buffer`, not an address.
pub const COMMAND_INCOMING_BUFFER: u16 = 2;

/// An operation of the device: see [`super::Operation`] for what each does with the fields.
///
/// Longer ones than a request can carry are split by the driver, and their results put together;
/// but not MOVE: `EIO` beyond [`DeviceInfo::max_transfer`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Code of the operation.
    pub operation: u16,
    /// `COMMAND_*` bits.
    pub flags: u16,
    /// Zero.
    pub reserved: u32,
    /// Byte offset in device memory.
    pub offset: u64,
    /// Bytes to work on.
    pub length: u64,
    /// A further operand, for the operations that name one.
    pub argument: u64,
    /// Address, or offset in a buffer, of the data that the device reads, for the operations that
    /// read some.
    pub outgoing: u64,
    /// Address, or offset in a buffer, of the data that the device writes, for the operations that
    /// write some.
    pub incoming: u64,
    /// Id of the buffer of `outgoing`, with [`COMMAND_OUTGOING_BUFFER`].
    pub outgoing_buffer: u32,
    /// Id of the buffer of `incoming`, with [`COMMAND_INCOMING_BUFFER`].
    pub incoming_buffer: u32,
    /// Filled in: bytes worked on, or a negative error number.
    pub result: i64,
    /// Filled in: the checksum, or the index of the first difference.
    pub value: u64,
}

/// Most commands of a [`Batch`].
pub const BATCH_MAX: u32 = 256;

/// Commands that are run together. They may run in any order, also at the same time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Address of an array of [`Command`]s.
    pub commands: u64,
    /// Number of commands, at most [`BATCH_MAX`].
    pub count: u32,
    /// Filled in: number of commands that were run; their results are filled in.
    pub done: u32,
}

/// Memory of the caller that is pinned until it is released, or the file closed. It counts against
/// `RLIMIT_MEMLOCK` of the caller's user.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Address of its first byte; any alignment.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// Filled in: the id of the buffer, for this open file.
    pub id: u32,
    /// Zero.
    pub reserved: u32,
}

/// Memory that the driver allocates for DMA. It counts against `RLIMIT_MEMLOCK` of the caller's
/// user until it is released and no file or mapping keeps it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Bytes, rounded up to whole pages by the driver.
    pub length: u64,
    /// Filled in: the id of the buffer, for this open file.
    pub id: u32,
    /// Filled in (read by [`IOCTL_IMPORT_BUFFER`]): a file whose mappings are the memory, and which
    /// keeps it.
    pub file: u32,
    /// Filled in: runs of neighbouring pages that the memory consists of.
    pub runs: u32,
    /// Zero.
    pub reserved: u32,
}

/// The trace of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Bytes to map.
    pub length: u64,
    /// The file.
    pub file: u32,
    /// Zero.
    pub reserved: u32,
}

/// The beginning of a mapped trace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceHeader {
    /// Number of the next record.
    pub head: u64,
    /// Number of slots, a power of two: record *n* is in slot *n* modulo this.
    pub capacity: u32,
    /// Bytes from the beginning of the mapping to slot 0.
    pub records_offset: u32,
    /// Bytes of a slot.
    pub record_size: u32,
    /// Zero.
    pub reserved: u32,
}

/// One completed request.
///
/// A reader loads `stamp`, copies the record, and loads `stamp` again: the copy is record *n* if it
/// was `2 * n + 2` both times. Anything else means that the record was overwritten, or is being
/// written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceRecord {
    /// `2 * n + 2` when record *n* is complete, `2 * n + 1` while it is written.
    pub stamp: u64,
    /// When the request came back, in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// Nanoseconds from its submission.
    pub latency: u64,
    /// Byte offset in device memory.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Code of the operation.
    pub operation: u16,
    /// Number of the queue.
    pub queue: u16,
    /// Zero, or a negative error number.
    pub result: i32,
    /// Pages of the data.
    pub pages: u32,
    /// Scatter-gather entries of the data.
    pub segments: u32,
    /// Bytes worked on.
    pub transferred: u64,
}

/// [`ExplainedPage::flags`]: the page is part of a huge page.
pub const PAGE_HUGE: u32 = 1;
/// [`ExplainedPage::flags`]: the page belongs to no file.
pub const PAGE_ANONYMOUS: u32 = 2;
/// [`ExplainedPage::flags`]: the device cannot reach the page; the driver copies it to one that the
/// device can reach.
pub const PAGE_BOUNCED: u32 = 4;

/// The pages of memory of the caller on their way to the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Where the memory begins.
    pub address: u64,
    /// Bytes.
    pub length: u64,
    /// Byte of device memory at which a transfer would begin.
    pub offset: u64,
    /// Address of an array of [`ExplainedPage`]s.
    pub pages: u64,
    /// Elements of the array.
    pub capacity: u32,
    /// Filled in: elements that were filled in; fewer than the memory has pages if the array is too
    /// short.
    pub count: u32,
}

/// One page on its way to the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExplainedPage {
    /// Where its bytes are for the caller.
    pub address: u64,
    /// Where they are for the kernel: the address in its direct map.
    pub kernel_address: u64,
    /// Where they are in physical memory.
    pub physical_address: u64,
    /// What the device is told.
    pub bus_address: u64,
    /// Where they are, or will be, in device memory.
    pub offset: u64,
    /// Bytes of the page that belong to the memory.
    pub length: u32,
    /// Scatter-gather entry that they are in, after coalescing, counted from 0.
    pub entry: u32,
    /// `PAGE_*` bits.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// What a device is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Negotiated virtio feature bits.
    pub features: u64,
    /// Bytes of device memory.
    pub memory_size: u64,
    /// Supported operations: bit *n* stands for the operation with code *n*.
    pub operations: u64,
    /// Guest-physical address of the shared-memory window, 0 without one.
    pub bar_address: u64,
    /// Bytes of the shared-memory window, 0 without one.
    pub bar_size: u64,
    /// Request queues in use.
    pub num_queues: u32,
    /// Descriptors of each request queue.
    pub queue_size: u32,
    /// Most data segments of one request; longer lists are split by the driver.
    pub max_segments: u32,
    /// Most data bytes of one request; longer transfers are split by the driver.
    pub max_transfer: u32,
    /// `STATE_*` bits of the configuration space.
    pub state: u32,
    /// Width of the addresses that the driver hands to the device, in bits.
    pub dma_bits: u32,
}

/// Passes the fields of [`Statistics`], in order and with their documentation, to the macro
/// `$then`.
///
/// This is the one list of them in Rust: a field that is added here is declared, counted, printed
/// and checked wherever the list is used.
#[macro_export]
macro_rules! with_statistics {
    ($then:ident) => {
        $then! {
            /// Requests handed to the device.
            submitted,
            /// Requests that came back, whatever their status.
            completed,
            /// Requests that came back with an error, or were abandoned.
            failed,
            /// Bytes moved from device memory.
            bytes_read,
            /// Bytes moved to device memory.
            bytes_written,
            /// User pages pinned for requests.
            pages_pinned,
            /// Scatter-gather entries that these pages were coalesced into.
            segments,
            /// Requests with the device at this moment.
            in_flight,
            /// Most requests that were with the device at once.
            in_flight_max,
            /// Requests that had to wait for free descriptors in a queue.
            queue_full,
            /// Pages that were copied because the device could not reach them.
            pages_bounced,
            /// Requests whose data were verified with a checksum of the driver's own.
            verified,
            /// Reads and writes that the CPU did through the BAR, without a request.
            inline_copies,
            /// Requests whose completion a task found by polling, without an interrupt.
            polled,
            /// Mappings of device memory at this moment.
            mappings,
            /// Faults of lazy mappings that mapped one page.
            faults,
            /// Faults of lazy mappings that mapped a huge page.
            huge_faults,
            /// Buffers, registered or allocated, at this moment.
            buffers,
        }
    };
}

macro_rules! declare_statistics {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of what passed through the driver.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Statistics {
            /// How many counts there are.
            pub const COUNT: usize = [$(stringify!($name)),*].len();

            /// The names of the counts, in the order of [`Statistics::values`].
            pub const NAMES: [&'static str; Self::COUNT] = [$(stringify!($name)),*];

            /// The counts.
            #[must_use]
            pub const fn values(&self) -> [u64; Self::COUNT] {
                let Self { $($name),* } = *self;
                [$($name),*]
            }
        }
    };
}
with_statistics!(declare_statistics);

const _: () = {
    assert!(size_of::<DeviceInfo>() == 64);
    assert!(size_of::<Statistics>() == 8 * Statistics::COUNT);
    assert!(size_of::<Choice>() == 8);
    assert!(size_of::<Command>() == 72);
    assert!(size_of::<Batch>() == 16);
    assert!(size_of::<Registration>() == 24);
    assert!(size_of::<Allocation>() == 24);
    assert!(size_of::<Trace>() == 16);
    assert!(size_of::<TraceHeader>() == 24);
    assert!(size_of::<TraceRecord>() == 64);
    assert!(size_of::<Explanation>() == 40);
    assert!(size_of::<ExplainedPage>() == 56);
};
