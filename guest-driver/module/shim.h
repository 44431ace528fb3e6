/* SPDX-License-Identifier: GPL-2.0 */
/* Static inlines and macros of the kernel that have no Rust helper, as functions. */

#ifndef VDMA_SHIM_H
#define VDMA_SHIM_H

#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/uio.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/workqueue.h>

int vdma_virtio_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue **queues,
			 struct virtqueue_info *info);
void vdma_virtio_del_vqs(struct virtio_device *vdev);
void vdma_virtio_device_ready(struct virtio_device *vdev);
bool vdma_virtio_get_shm_region(struct virtio_device *vdev, struct virtio_shm_region *region, u8 id);
void vdma_virtio_cread_words(struct virtio_device *vdev, unsigned int offset, __le32 *buf,
			    size_t words);
u64 vdma_virtio_features(const struct virtio_device *vdev);

size_t vdma_iov_iter_count(const struct iov_iter *iter);
void vdma_iov_iter_truncate(struct iov_iter *iter, size_t count);
bool vdma_iov_iter_will_pin(const struct iov_iter *iter);

void vdma_sg_set_page(struct scatterlist *sg, struct page *page, unsigned int len,
		      unsigned int offset);
void vdma_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len);
struct page *vdma_sg_page(struct scatterlist *sg);
void vdma_sg_mark_end(struct scatterlist *sg);

void vdma_pages_mark_dirty(struct page *page, unsigned long count);
bool vdma_pages_are_dirty(struct page *page, unsigned long count);

int vdma_io_remap_pfn_range(struct vm_area_struct *vma, unsigned long address, unsigned long pfn,
			    unsigned long size);
pgoff_t vdma_vma_pgoff(const struct vm_area_struct *vma);

void vdma_init_delayed_work(struct delayed_work *work, work_func_t run);
void vdma_schedule_delayed_work(struct delayed_work *work, unsigned long delay);

bool vdma_signal_pending(void);

bool vdma_device_trylock(struct device *dev);
void vdma_device_unlock(struct device *dev);

#endif
