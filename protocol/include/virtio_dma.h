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

/* Fills device memory with the eight little-endian bytes of argument, repeated from offset. */
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

/* Makes all that completed before durable in the memory file. */
#define VDMA_OP_FLUSH 12U

/* Makes length bytes at offset read as zeroes and gives the memory behind whole pages back. */
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
#define VDMA_IOCTL_FILE_STATISTICS 0x8050d501U

/* Fills Statistics with the counts of the device since the driver was bound to it. */
#define VDMA_IOCTL_DEVICE_STATISTICS 0x8050d502U

/*
 * The configuration space (SPEC.md, section 4). Read-only for the driver; all fields but Config.state are
 * constant while a driver is bound.
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
	/* Most data bytes that one request may move in each direction. */
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
	/* Requests that came back with an error, or were given up. */
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
	/* Requests that had to wait for room in a queue. */
	__u64 queue_full;
};

#endif /* VIRTIO_DMA_H */
