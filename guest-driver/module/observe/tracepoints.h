/* SPDX-License-Identifier: GPL-2.0 */
/* Tracepoints: perf, ftrace and bpftrace see them as vdma:vdma_submit and vdma_complete. */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM vdma

#if !defined(VDMA_TRACEPOINTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define VDMA_TRACEPOINTS_H

#include <linux/tracepoint.h>

#define vdma_operation_names						\
	{ 0, "nop" }, { 1, "read" }, { 2, "write" }, { 3, "copy" },	\
	{ 4, "move" }, { 5, "fill" }, { 6, "fill-guest" },		\
	{ 7, "compare" }, { 8, "crc32c" }, { 9, "crc32c-guest" },	\
	{ 10, "read-crc32c" }, { 11, "write-crc32c" },			\
	{ 12, "flush" }, { 13, "discard" }

TRACE_EVENT(vdma_submit,
	TP_PROTO(u32 device, u32 queue, u16 operation, u64 offset, u64 length, u32 pages,
		 u32 segments),
	TP_ARGS(device, queue, operation, offset, length, pages, segments),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, queue)
		__field(u16, operation)
		__field(u64, offset)
		__field(u64, length)
		__field(u32, pages)
		__field(u32, segments)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->queue = queue;
		__entry->operation = operation;
		__entry->offset = offset;
		__entry->length = length;
		__entry->pages = pages;
		__entry->segments = segments;
	),
	TP_printk("vdma%u queue=%u operation=%s offset=%#llx length=%llu pages=%u segments=%u",
		  __entry->device, __entry->queue,
		  __print_symbolic(__entry->operation, vdma_operation_names),
		  __entry->offset, __entry->length, __entry->pages, __entry->segments)
);

TRACE_EVENT(vdma_complete,
	TP_PROTO(u32 device, u32 queue, u16 operation, u64 offset, u64 length, int result,
		 u64 latency),
	TP_ARGS(device, queue, operation, offset, length, result, latency),
	TP_STRUCT__entry(
		__field(u32, device)
		__field(u32, queue)
		__field(u16, operation)
		__field(u64, offset)
		__field(u64, length)
		__field(int, result)
		__field(u64, latency)
	),
	TP_fast_assign(
		__entry->device = device;
		__entry->queue = queue;
		__entry->operation = operation;
		__entry->offset = offset;
		__entry->length = length;
		__entry->result = result;
		__entry->latency = latency;
	),
	TP_printk("vdma%u queue=%u operation=%s offset=%#llx length=%llu result=%d latency_ns=%llu",
		  __entry->device, __entry->queue,
		  __print_symbolic(__entry->operation, vdma_operation_names),
		  __entry->offset, __entry->length, __entry->result, __entry->latency)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE tracepoints
#include <trace/define_trace.h>
