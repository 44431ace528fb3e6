/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: the headers behind the driver, and macros that it cannot evaluate. */

#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/anon_inodes.h>
#include <linux/crc32.h>
#include <linux/fs.h>
#include <linux/huge_mm.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>

#include "shim.h"

static const fmode_t VDMA_FMODE_NOWAIT = FMODE_NOWAIT;
static const fmode_t VDMA_FMODE_CAN_ODIRECT = FMODE_CAN_ODIRECT;
static const fmode_t VDMA_FMODE_READ = FMODE_READ;
static const fmode_t VDMA_FMODE_WRITE = FMODE_WRITE;
static const int VDMA_IOCB_NOWAIT = IOCB_NOWAIT;
static const int VDMA_IOCB_HIPRI = IOCB_HIPRI;
static const int VDMA_IOCB_APPEND = IOCB_APPEND;
static const int VDMA_IOCB_DSYNC = IOCB_DSYNC;
static const unsigned int VDMA_O_NONBLOCK = O_NONBLOCK;
static const unsigned int VDMA_URING_NONBLOCK = IO_URING_F_NONBLOCK;
static const unsigned int VDMA_URING_CQE32 = IO_URING_F_CQE32;
static const unsigned int VDMA_PMD_ORDER = PMD_ORDER;
static const unsigned int VDMA_PUD_ORDER = PUD_ORDER;
static const gfp_t VDMA_GFP_BUFFER = GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOWARN;
static const gfp_t VDMA_GFP_NORETRY = __GFP_NORETRY;
static const gfp_t VDMA_GFP_RETRY_MAYFAIL = __GFP_RETRY_MAYFAIL;
static const gfp_t VDMA_GFP_DMA32 = GFP_DMA32;
static const unsigned long VDMA_SG_PAGE_LINK_MASK = SG_PAGE_LINK_MASK;
static const unsigned long VDMA_SG_END = SG_END;
static const slab_flags_t VDMA_SLAB_CACHE_DMA32 = SLAB_CACHE_DMA32;
static const vm_flags_t VDMA_VM_WRITE = VM_WRITE;
static const vm_flags_t VDMA_VM_PFNMAP = VM_PFNMAP;
static const unsigned int VDMA_O_CLOEXEC = O_CLOEXEC;
static const slab_flags_t VDMA_SLAB_HWCACHE_ALIGN = SLAB_HWCACHE_ALIGN;
static const slab_flags_t VDMA_SLAB_ACCOUNT = SLAB_ACCOUNT;
static const slab_flags_t VDMA_SLAB_NO_MERGE = SLAB_NO_MERGE;
