/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen reads: the headers behind the driver, and macros that it cannot evaluate. */

#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/fs.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "shim.h"

static const fmode_t VDMA_FMODE_NOWAIT = FMODE_NOWAIT;
static const fmode_t VDMA_FMODE_CAN_ODIRECT = FMODE_CAN_ODIRECT;
static const int VDMA_IOCB_NOWAIT = IOCB_NOWAIT;
static const slab_flags_t VDMA_SLAB_HWCACHE_ALIGN = SLAB_HWCACHE_ALIGN;
static const slab_flags_t VDMA_SLAB_NO_MERGE = SLAB_NO_MERGE;
/* The kernel crate's constant of this name is VM_MAYEXEC in 7.2. */
static const vm_flags_t VDMA_VM_MAYSHARE = VM_MAYSHARE;
