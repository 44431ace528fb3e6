/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * The vdma protocol for programs in C: the DMA device's requests and configuration, and the calls
 * of /dev/vdmaN. Generated from protocol/src/wire by protocol/tests/c_header; do not edit.
 */
#ifndef VIRTIO_DMA_H
#define VIRTIO_DMA_H

#include <linux/types.h>

/*
 * Virtio device id: reserved for "dmabuf" in the virtio list, with neither driver nor
 * specification. CONFIG_MAGIC tells this device from any other with the same id.
 */
#define VDMA_DEVICE_ID 37U

/* PCI device id of a modern virtio device with DEVICE_ID (virtio 1.2, section 4.1.2.1). */
#define VDMA_PCI_DEVICE_ID 0x1065U

/* Shared-memory region that holds the device memory (virtio 1.2, section 2.10). */
#define VDMA_SHMEM_ID_DEVICE_MEMORY 0U

/*
 * Feature bit: device memory is mapped as shared-memory region SHMEM_ID_DEVICE_MEMORY once
 * the driver has acknowledged this bit.
 */
#define VDMA_FEATURE_BAR 0U

/* First word of the configuration space: the bytes vdma. */
#define VDMA_CONFIG_MAGIC 0x616d6476U

/*
 * Version of the configuration layout and of the request format described here. A driver leaves
 * a device with another version alone; compatible growth goes through feature bits, operation
 * bits and the reserved bytes.
 */
#define VDMA_CONFIG_VERSION 1U

/* Bit in Config.state: region SHMEM_ID_DEVICE_MEMORY shows device memory right now. */
#define VDMA_STATE_BAR_MAPPED 1U

/* Bit in Config.state: device memory is kept in a file across restarts of the device. */
#define VDMA_STATE_PERSISTENT 2U

/* Bit in Config.state: others may change device memory at any time (--share). */
#define VDMA_STATE_SHARED 4U

/* Completes without doing anything. */
#define VDMA_OP_NOP 0U

/* Copies length bytes of device memory at offset to the incoming data. */
#define VDMA_OP_READ 1U

/* Copies length bytes of outgoing data to device memory at offset. */
#define VDMA_OP_WRITE 2U

/* Copies length bytes from outgoing to incoming data (guest memory to guest memory). */
#define VDMA_OP_COPY 3U

/* Copies length bytes of device memory from offset argument to offset, as memmove. */
#define VDMA_OP_MOVE 4U

/*
 * Fills device memory with the eight little-endian bytes of argument, repeated from
 * offset.
 */
#define VDMA_OP_FILL 5U

/* Fills the incoming data with the eight little-endian bytes of argument, repeated. */
#define VDMA_OP_FILL_GUEST 6U

/*
 * Compares outgoing data with device memory at offset; Response.value is the index of
 * the first differing byte, or length when all are equal.
 */
#define VDMA_OP_COMPARE 7U

/*
 * CRC32C of length bytes of device memory at offset, in Response.value. The low half
 * of argument continues an earlier checksum (0 starts a new one).
 */
#define VDMA_OP_CRC32C 8U

/* CRC32C of the outgoing data, otherwise as Operation.Crc32c. */
#define VDMA_OP_CRC32C_GUEST 9U

/* Operation.Read with the CRC32C of the bytes in Response.value. */
#define VDMA_OP_READ_CRC32C 10U

/* Operation.Write with the CRC32C of the bytes in Response.value. */
#define VDMA_OP_WRITE_CRC32C 11U

/* Makes the effects of requests that completed before durable in the memory file. */
#define VDMA_OP_FLUSH 12U

/*
 * Makes length bytes at offset read as zeroes and gives the memory behind whole pages
 * back.
 */
#define VDMA_OP_DISCARD 13U

/* Done. */
#define VDMA_STATUS_OK 0U

/* The device has no operation with this code. */
#define VDMA_STATUS_UNSUPPORTED 1U

/* A flag is set that the device does not know. */
#define VDMA_STATUS_BAD_FLAGS 2U

/* offset and length (or argument and length) leave device memory. */
#define VDMA_STATUS_BAD_RANGE 3U

/*
 * A data part is shorter or longer than length, stands where the operation has none, or is
 * over Config.max_transfer.
 */
#define VDMA_STATUS_BAD_LENGTH 4U

/* A descriptor points outside of the memory that the device can reach. */
#define VDMA_STATUS_BAD_ADDRESS 5U

/* The operation failed inside the device; how much of it was done is unknown. */
#define VDMA_STATUS_IO_ERROR 6U

/* The chain is not a request: the header is cut short, or it has too many descriptors. */
#define VDMA_STATUS_BAD_REQUEST 7U

/*
 * Never sent: a driver writes it before it submits, and so recognizes a response that the
 * device did not write.
 */
#define VDMA_STATUS_UNWRITTEN 65535U

/* The type byte of vdma's ioctl numbers. */
#define VDMA_IOCTL_TYPE 0xd5U

/* Fills a DeviceInfo. */
#define VDMA_IOCTL_INFO 0x8040d500U

/* Fills Statistics with the counts of the open file. */
#define VDMA_IOCTL_FILE_STATISTICS 0x8090d501U

/* Fills Statistics with the counts of the device since the driver was bound to it. */
#define VDMA_IOCTL_DEVICE_STATISTICS 0x8090d502U

/* Takes a Choice, one of the MAP_* values: how later mappings of this open file are filled. */
#define VDMA_IOCTL_MAP_MODE 0x4008d503U

/*
 * Takes a Choice, one of the CACHE_* values: the cache attribute of all mappings of device
 * memory. EBUSY while one exists; EPERM without CAP_SYS_ADMIN.
 */
#define VDMA_IOCTL_CACHE_MODE 0x4008d504U

/*
 * Runs a Command, waits for it, and fills in its results. The call itself fails only when the
 * command was not run; Command.result says how it ended.
 */
#define VDMA_IOCTL_RUN 0xc048d505U

/* Runs a Batch of commands, all at once, and waits for all of them. */
#define VDMA_IOCTL_RUN_BATCH 0xc010d506U

/* Pins memory of the caller long-term, as Registration says, and fills in its id. */
#define VDMA_IOCTL_REGISTER_BUFFER 0xc018d507U

/* Allocates memory for DMA, as Allocation says, and fills in its id and a file to map it with. */
#define VDMA_IOCTL_ALLOCATE_BUFFER 0xc018d508U

/*
 * Gives the memory behind a file of IOCTL_ALLOCATE_BUFFER (of another process, perhaps) an id
 * here: the file of an Allocation is read, its other fields are filled in.
 */
#define VDMA_IOCTL_IMPORT_BUFFER 0xc018d509U

/*
 * Takes a Choice: the id of a buffer to release; its memory is unpinned when the last request
 * that uses it has completed.
 */
#define VDMA_IOCTL_RELEASE_BUFFER 0x4008d50aU

/*
 * Fills a Trace with a file, to be mapped read-only: a TraceHeader and TraceRecords,
 * written while there is such a file. EPERM without CAP_SYS_ADMIN: it shows the
 * requests of all users.
 */
#define VDMA_IOCTL_TRACE 0x8010d50bU

/*
 * Fills in an Explanation: the addresses of memory of the caller on its way to the device.
 * EPERM without CAP_SYS_ADMIN: it shows addresses of the kernel.
 */
#define VDMA_IOCTL_EXPLAIN 0xc028d50cU

/*
 * Takes a Choice: an eventfd that is incremented with each transfer or command of this file
 * that ends, or NO_FILE to stop that.
 */
#define VDMA_IOCTL_EVENTFD 0x4008d50dU

/*
 * The cmd_op of an io_uring URING_CMD: runs the Command at the address in addr of the
 * submission. It is read before the submission returns; its results are written before the
 * completion, which carries Command.result, and in a 32-byte completion Command.value
 * too.
 */
#define VDMA_URING_RUN 0xc048d505U

/* Choice.value that stands for no file. */
#define VDMA_NO_FILE 0xffffffffU

/* Map mode: the whole range is mapped at once (io_remap_pfn_range). The mode of a new file. */
#define VDMA_MAP_EAGER 0U

/* Map mode: pages are mapped by the fault of the first access, huge ones where that is possible. */
#define VDMA_MAP_LAZY 1U

/* Cache attribute: write-back, as ordinary memory. The attribute of a new device. */
#define VDMA_CACHE_WRITE_BACK 0U

/* Cache attribute: write-combining. */
#define VDMA_CACHE_WRITE_COMBINING 1U

/* Cache attribute: uncached. */
#define VDMA_CACHE_UNCACHED 2U

/* Command.flags: outgoing is an offset in the buffer outgoing_buffer, not an address. */
#define VDMA_COMMAND_OUTGOING_BUFFER 1U

/* Command.flags: incoming is an offset in the buffer incoming_buffer, not an address. */
#define VDMA_COMMAND_INCOMING_BUFFER 2U

/* Most commands of a Batch. */
#define VDMA_BATCH_MAX 256U

/* ExplainedPage.flags: the page is part of a huge page. */
#define VDMA_PAGE_HUGE 1U

/* ExplainedPage.flags: the page belongs to no file. */
#define VDMA_PAGE_ANONYMOUS 2U

/*
 * ExplainedPage.flags: the device cannot reach the page; the driver copies it to one that the
 * device can reach.
 */
#define VDMA_PAGE_BOUNCED 4U

/*
 * The configuration space (SPEC.md, section 4). Read-only for the driver; all fields but
 * Config.state are constant while a driver is bound.
 */
struct vdma_config {
	/* CONFIG_MAGIC. */
	__le32 magic;
	/* CONFIG_VERSION. */
	__le32 version;
	/* Bytes of device memory; a multiple of 4096. */
	__le64 memory_size;
	/* Supported operations: bit *n* stands for the operation with code *n*. */
	__le64 operations;
	/* Number of request queues, 1 to 16. */
	__le16 num_queues;
	/* Zero; ignored by the driver. */
	__le16 reserved0;
	/* Most descriptors that one request may have, header and response included. */
	__le32 max_segments;
	/* Largest length of a request, in bytes. */
	__le32 max_transfer;
	/* STATE_* bits. */
	__le32 state;
	/* Zero; ignored by the driver. */
	__u8 reserved1[24];
};

/* The first bytes of every request (SPEC.md, section 7.1). */
struct vdma_request_header {
	/* Code of an Operation. */
	__le16 operation;
	/* Zero: no flag is defined. A device answers any other value with Status.BAD_FLAGS. */
	__le16 flags;
	/* Zero; ignored by the device. */
	__le32 reserved;
	/* Byte offset in device memory. */
	__le64 offset;
	/* Bytes to work on; equal to the length of each data part that the operation has. */
	__le64 length;
	/* A further operand, for the operations that name one. */
	__le64 argument;
};

/* The first device-writable bytes of every request (SPEC.md, section 7.2). */
struct vdma_response {
	/* A Status. */
	__le16 status;
	/* Zero; ignored by the driver. */
	__le16 reserved;
	/*
	 * Data bytes that the operation worked on: length with Status.OK, otherwise a count of
	 * bytes that are certain to be done, from the start.
	 */
	__le32 transferred;
	/* The result of the operations that have one, otherwise zero. */
	__le64 value;
};

/* The argument of calls that take one number. */
struct vdma_choice {
	/* The number. */
	__u32 value;
	/* Zero. */
	__u32 reserved;
};

/*
 * An operation of the device: see Operation for what each does with the fields.
 *
 * Longer ones than a request can carry are split by the driver, and their results put together;
 * but not MOVE: EIO beyond DeviceInfo.max_transfer.
 */
struct vdma_command {
	/* Code of the operation. */
	__u16 operation;
	/* COMMAND_* bits. */
	__u16 flags;
	/* Zero. */
	__u32 reserved;
	/* Byte offset in device memory. */
	__u64 offset;
	/* Bytes to work on. */
	__u64 length;
	/* A further operand, for the operations that name one. */
	__u64 argument;
	/*
	 * Address, or offset in a buffer, of the data that the device reads, for the operations that
	 * read some.
	 */
	__u64 outgoing;
	/*
	 * Address, or offset in a buffer, of the data that the device writes, for the operations that
	 * write some.
	 */
	__u64 incoming;
	/* Id of the buffer of outgoing, with COMMAND_OUTGOING_BUFFER. */
	__u32 outgoing_buffer;
	/* Id of the buffer of incoming, with COMMAND_INCOMING_BUFFER. */
	__u32 incoming_buffer;
	/* Filled in: bytes worked on, or a negative error number. */
	__s64 result;
	/* Filled in: the checksum, or the index of the first difference. */
	__u64 value;
};

/* Commands that are run together. They may run in any order, also at the same time. */
struct vdma_batch {
	/* Address of an array of Commands. */
	__u64 commands;
	/* Number of commands, at most BATCH_MAX. */
	__u32 count;
	/* Filled in: number of commands that were run; their results are filled in. */
	__u32 done;
};

/*
 * Memory of the caller that is pinned until it is released, or the file closed. It counts against
 * RLIMIT_MEMLOCK of the caller's user.
 */
struct vdma_registration {
	/* Address of its first byte; any alignment. */
	__u64 address;
	/* Length in bytes. */
	__u64 length;
	/* Filled in: the id of the buffer, for this open file. */
	__u32 id;
	/* Zero. */
	__u32 reserved;
};

/*
 * Memory that the driver allocates for DMA. It counts against RLIMIT_MEMLOCK of the caller's
 * user until it is released and no file or mapping keeps it.
 */
struct vdma_allocation {
	/* Bytes, rounded up to whole pages by the driver. */
	__u64 length;
	/* Filled in: the id of the buffer, for this open file. */
	__u32 id;
	/*
	 * Filled in (read by IOCTL_IMPORT_BUFFER): a file whose mappings are the memory, and which
	 * keeps it.
	 */
	__u32 file;
	/* Filled in: runs of neighbouring pages that the memory consists of. */
	__u32 runs;
	/* Zero. */
	__u32 reserved;
};

/* The trace of a device. */
struct vdma_trace {
	/* Bytes to map. */
	__u64 length;
	/* The file. */
	__u32 file;
	/* Zero. */
	__u32 reserved;
};

/* The beginning of a mapped trace. */
struct vdma_trace_header {
	/* Number of the next record. */
	__u64 head;
	/* Number of slots, a power of two: record *n* is in slot *n* modulo this. */
	__u32 capacity;
	/* Bytes from the beginning of the mapping to slot 0. */
	__u32 records_offset;
	/* Bytes of a slot. */
	__u32 record_size;
	/* Zero. */
	__u32 reserved;
};

/*
 * One completed request.
 *
 * A reader loads stamp, copies the record, and loads stamp again: the copy is record *n* if it
 * was 2 * n + 2 both times. Anything else means that the record was overwritten, or is being
 * written.
 */
struct vdma_trace_record {
	/* 2 * n + 2 when record *n* is complete, 2 * n + 1 while it is written. */
	__u64 stamp;
	/* When the request came back, in nanoseconds of CLOCK_MONOTONIC. */
	__u64 time;
	/* Nanoseconds from its submission. */
	__u64 latency;
	/* Byte offset in device memory. */
	__u64 offset;
	/* Bytes. */
	__u64 length;
	/* Code of the operation. */
	__u16 operation;
	/* Number of the queue. */
	__u16 queue;
	/* Zero, or a negative error number. */
	__s32 result;
	/* Pages of the data. */
	__u32 pages;
	/* Scatter-gather entries of the data. */
	__u32 segments;
	/* Bytes worked on. */
	__u64 transferred;
};

/* The pages of memory of the caller on their way to the device. */
struct vdma_explanation {
	/* Where the memory begins. */
	__u64 address;
	/* Bytes. */
	__u64 length;
	/* Byte of device memory at which a transfer would begin. */
	__u64 offset;
	/* Address of an array of ExplainedPages. */
	__u64 pages;
	/* Elements of the array. */
	__u32 capacity;
	/*
	 * Filled in: elements that were filled in; fewer than the memory has pages if the array is too
	 * short.
	 */
	__u32 count;
};

/* One page on its way to the device. */
struct vdma_explained_page {
	/* Where its bytes are for the caller. */
	__u64 address;
	/* Where they are for the kernel: the address in its direct map. */
	__u64 kernel_address;
	/* Where they are in physical memory. */
	__u64 physical_address;
	/* What the device is told. */
	__u64 bus_address;
	/* Where they are, or will be, in device memory. */
	__u64 offset;
	/* Bytes of the page that belong to the memory. */
	__u32 length;
	/* Scatter-gather entry that they are in, after coalescing, counted from 0. */
	__u32 entry;
	/* PAGE_* bits. */
	__u32 flags;
	/* Zero. */
	__u32 reserved;
};

/* What a device is. */
struct vdma_device_info {
	/* Negotiated virtio feature bits. */
	__u64 features;
	/* Bytes of device memory. */
	__u64 memory_size;
	/* Supported operations: bit *n* stands for the operation with code *n*. */
	__u64 operations;
	/* Guest-physical address of the shared-memory window, 0 without one. */
	__u64 bar_address;
	/* Bytes of the shared-memory window, 0 without one. */
	__u64 bar_size;
	/* Request queues in use. */
	__u32 num_queues;
	/* Descriptors of each request queue. */
	__u32 queue_size;
	/* Most data segments of one request; longer lists are split by the driver. */
	__u32 max_segments;
	/* Most data bytes of one request; longer transfers are split by the driver. */
	__u32 max_transfer;
	/* STATE_* bits of the configuration space. */
	__u32 state;
	/* Width of the addresses that the driver hands to the device, in bits. */
	__u32 dma_bits;
};

/* Counts of what passed through the driver. */
struct vdma_statistics {
	/* Requests handed to the device. */
	__u64 submitted;
	/* Requests that came back, whatever their status. */
	__u64 completed;
	/* Requests that came back with an error, or were abandoned. */
	__u64 failed;
	/* Bytes moved from device memory. */
	__u64 bytes_read;
	/* Bytes moved to device memory. */
	__u64 bytes_written;
	/* User pages pinned for requests. */
	__u64 pages_pinned;
	/* Scatter-gather entries that these pages were coalesced into. */
	__u64 segments;
	/* Requests with the device at this moment. */
	__u64 in_flight;
	/* Most requests that were with the device at once. */
	__u64 in_flight_max;
	/* Requests that had to wait for free descriptors in a queue. */
	__u64 queue_full;
	/* Pages that were copied because the device could not reach them. */
	__u64 pages_bounced;
	/* Requests whose data were verified with a checksum of the driver's own. */
	__u64 verified;
	/* Reads and writes that the CPU did through the BAR, without a request. */
	__u64 inline_copies;
	/* Requests whose completion a task found by polling, without an interrupt. */
	__u64 polled;
	/* Mappings of device memory at this moment. */
	__u64 mappings;
	/* Faults of lazy mappings that mapped one page. */
	__u64 faults;
	/* Faults of lazy mappings that mapped a huge page. */
	__u64 huge_faults;
	/* Buffers, registered or allocated, at this moment. */
	__u64 buffers;
};

#endif /* VIRTIO_DMA_H */
