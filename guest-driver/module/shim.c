// SPDX-License-Identifier: GPL-2.0

#include <linux/pagemap.h>
#include <linux/sched/signal.h>

#include "shim.h"

int vdma_virtio_find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue **queues,
			 struct virtqueue_info *info)
{
	return virtio_find_vqs(vdev, count, queues, info, NULL);
}

void vdma_virtio_del_vqs(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

void vdma_virtio_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

bool vdma_virtio_get_shm_region(struct virtio_device *vdev, struct virtio_shm_region *region, u8 id)
{
	return virtio_get_shm_region(vdev, region, id);
}

void vdma_virtio_cread_words(struct virtio_device *vdev, unsigned int offset, __le32 *buf,
			    size_t words)
{
	__virtio_cread_many(vdev, offset, buf, words, sizeof(u32));
}

u64 vdma_virtio_features(const struct virtio_device *vdev)
{
	return vdev->features;
}

size_t vdma_iov_iter_count(const struct iov_iter *iter)
{
	return iov_iter_count(iter);
}

void vdma_iov_iter_truncate(struct iov_iter *iter, size_t count)
{
	iov_iter_truncate(iter, count);
}

bool vdma_iov_iter_will_pin(const struct iov_iter *iter)
{
	return iov_iter_extract_will_pin(iter);
}

void vdma_sg_set_page(struct scatterlist *sg, struct page *page, unsigned int len,
		      unsigned int offset)
{
	sg_set_page(sg, page, len, offset);
}

void vdma_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len)
{
	sg_init_one(sg, buf, len);
}

struct page *vdma_sg_page(struct scatterlist *sg)
{
	return sg_page(sg);
}

void vdma_sg_mark_end(struct scatterlist *sg)
{
	sg_mark_end(sg);
}

/* Steps from folio to folio: dirtiness belongs to the folio, not to each of its pages. */
#define vdma_for_each_folio(folio, page, count)						\
	for (unsigned long _i = 0, _n;							\
	     _i < (count) && (folio = page_folio((page) + _i),				\
			      _n = folio_nr_pages(folio) -				\
				   folio_page_idx(folio, (page) + _i), true);		\
	     _i += _n)

void vdma_pages_mark_dirty(struct page *page, unsigned long count)
{
	struct folio *folio;

	vdma_for_each_folio(folio, page, count) {
		folio_lock(folio);
		folio_mark_dirty(folio);
		folio_unlock(folio);
	}
}

bool vdma_pages_are_dirty(struct page *page, unsigned long count)
{
	struct folio *folio;

	vdma_for_each_folio(folio, page, count) {
		if (!folio_test_dirty(folio))
			return false;
	}
	return true;
}

int vdma_io_remap_pfn_range(struct vm_area_struct *vma, unsigned long address, unsigned long pfn,
			    unsigned long size)
{
	return io_remap_pfn_range(vma, address, pfn, size, vma->vm_page_prot);
}

pgoff_t vdma_vma_pgoff(const struct vm_area_struct *vma)
{
	return vma->vm_pgoff;
}

void vdma_init_delayed_work(struct delayed_work *work, work_func_t run)
{
	INIT_DELAYED_WORK(work, run);
}

void vdma_schedule_delayed_work(struct delayed_work *work, unsigned long delay)
{
	mod_delayed_work(system_dfl_wq, work, delay);
}

bool vdma_signal_pending(void)
{
	return task_sigpending(current);
}

bool vdma_device_trylock(struct device *dev)
{
	return device_trylock(dev);
}

void vdma_device_unlock(struct device *dev)
{
	device_unlock(dev);
}
