/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause */
/*
 * Copies to and from mapped device memory with each cache attribute, and through the DMA engine.
 *
 * cc -O2 -static -I ../../protocol/include -o cache_attributes cache_attributes.c
 * cargo vm exec --copy cache_attributes -- ./cache_attributes
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "virtio_dma.h"

#define LENGTH (16u << 20)
#define ROUNDS 5

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void die(const char *what)
{
	fprintf(stderr, "cache_attributes: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The best of some rounds, in MiB/s: what else the machine does only makes it slower. */
static double rate(void (*run)(int, char *, char *), int fd, char *memory,
		   char *buffer)
{
	double best = 0;

	for (int round = 0; round < ROUNDS; round++) {
		double begin = now(), mib;

		run(fd, memory, buffer);
		mib = (LENGTH >> 20) / (now() - begin);
		if (mib > best)
			best = mib;
	}
	return best;
}

static void store(int fd, char *memory, char *buffer)
{
	memcpy(memory, buffer, LENGTH);
}

static void load(int fd, char *memory, char *buffer)
{
	memcpy(buffer, memory, LENGTH);
}

static void dma_write(int fd, char *memory, char *buffer)
{
	if (pwrite(fd, buffer, LENGTH, 0) != LENGTH)
		die("pwrite");
}

static void dma_read(int fd, char *memory, char *buffer)
{
	if (pread(fd, buffer, LENGTH, 0) != LENGTH)
		die("pread");
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "write-back", "write-combining", "uncached" };
	const char *path = argc > 1 ? argv[1] : "/dev/vdma0";
	int fd = open(path, O_RDWR);
	char *buffer = aligned_alloc(4096, LENGTH);

	if (fd < 0)
		die(path);
	if (!buffer)
		die("memory");
	memset(buffer, 1, LENGTH);
	printf("%-20s %10s %10s  (MiB/s, best of %d)\n", "16 MiB", "to device", "from", ROUNDS);
	for (__u32 cache = VDMA_CACHE_WRITE_BACK; cache <= VDMA_CACHE_UNCACHED; cache++) {
		struct vdma_choice choice = { .value = cache };
		char *memory;

		if (ioctl(fd, VDMA_IOCTL_CACHE_MODE, &choice))
			die("ioctl CACHE_MODE");
		memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (memory == MAP_FAILED)
			die("mmap");
		printf("%-20s %10.0f %10.0f\n", names[cache], rate(store, fd, memory, buffer),
		       rate(load, fd, memory, buffer));
		munmap(memory, LENGTH);
	}
	printf("%-20s %10.0f %10.0f\n", "DMA", rate(dma_write, fd, NULL, buffer),
	       rate(dma_read, fd, NULL, buffer));
	return 0;
}
