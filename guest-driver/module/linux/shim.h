/* SPDX-License-Identifier: GPL-2.0 */
/* Static inlines and macros of the kernel that have no Rust helper, as functions. */

#ifndef VDMA_SHIM_H
#define VDMA_SHIM_H

#include <linux/blkdev.h>
#include <linux/io_uring/cmd.h>
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
bool vdma_virtio_get_shm_region(struct virtio_device *vdev, struct virtio_shm_region *region,
				u8 id);
void vdma_virtio_cread_words(struct virtio_device *vdev, unsigned int offset, __le32 *buf,
			    size_t words);
u64 vdma_virtio_features(const struct virtio_device *vdev);

size_t vdma_iov_iter_count(const struct iov_iter *iter);
void vdma_iov_iter_truncate(struct iov_iter *iter, size_t count);
bool vdma_iov_iter_will_pin(const struct iov_iter *iter);

void vdma_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len);

void vdma_pages_mark_dirty(struct page *page, unsigned long count);
bool vdma_pages_are_dirty(struct page *page, unsigned long count);

bool vdma_mapping_is_shared(const struct vm_area_desc *desc);
void vdma_mapping_set_cache(struct vm_area_desc *desc, unsigned int mode);
void vdma_mapping_remap_io(struct vm_area_desc *desc, unsigned long pfn);
void vdma_mapping_set_pfnmap(struct vm_area_desc *desc);
void vdma_mapping_set_fixed(struct vm_area_desc *desc);
pgoff_t vdma_vma_pgoff(const struct vm_area_struct *vma);
void vdma_vma_forbid_writing(struct vm_area_struct *vma);

void __iomem *vdma_ioremap(phys_addr_t address, size_t size, unsigned int mode);
void vdma_memcpy_fromio(void *to, const void __iomem *from, size_t size);
void vdma_memcpy_toio(void __iomem *to, const void *from, size_t size);

struct page *vdma_alloc_pages(gfp_t gfp, unsigned int order);
void vdma_put_page(struct page *page);
void vdma_get_page(struct page *page);
phys_addr_t vdma_page_to_phys(struct page *page);
void *vdma_page_address(struct page *page);
bool vdma_page_is_huge(struct page *page);
bool vdma_page_is_anonymous(struct page *page);

unsigned int vdma_virtqueue_free(const struct virtqueue *queue);
void vdma_virtqueue_spread_interrupts(struct virtqueue *queue, unsigned int queues);
int vdma_set_dma_mask(struct virtio_device *vdev, unsigned int bits);
dma_addr_t vdma_dma_map_page(struct virtqueue *queue, struct page *page, unsigned int offset,
			     unsigned int size, bool write);

struct file *vdma_uring_file(const struct io_uring_cmd *cmd);
u32 vdma_uring_operation(const struct io_uring_cmd *cmd);
u32 vdma_uring_flags(const struct io_uring_cmd *cmd);
u64 vdma_uring_address(const struct io_uring_cmd *cmd);
void *vdma_uring_private(struct io_uring_cmd *cmd);
void vdma_uring_complete_in_task(struct io_uring_cmd *cmd);
bool vdma_task_has_memory(void);

void vdma_trace_submit(u32 device, u32 queue, u16 operation, u64 offset, u64 length, u32 pages,
		       u32 segments);
void vdma_trace_complete(u32 device, u32 queue, u16 operation, u64 offset, u64 length, int result,
			 u64 latency);
bool vdma_tracing(void);
void vdma_preempt_disable(void);
void vdma_preempt_enable(void);
void vdma_cpu_relax(void);
void vdma_cond_resched(void);

/* A callback for the end of a submission. */
struct vdma_plug_callback {
	struct blk_plug_cb plug;
	const void *owner;
};

/* The task's callback for the key, a new one if need be, or null where nothing is plugged. */
struct vdma_plug_callback *vdma_check_plugged(blk_plug_cb_fn unplug, void *key);
void vdma_free_plug_callback(struct vdma_plug_callback *callback);

/* What begins the private part of an io_uring command while it is under way. */
struct vdma_uring_head {
	/* Called in the submitter's task; has to end in __io_uring_cmd_done. */
	void (*finish)(struct io_uring_cmd *cmd, unsigned int issue_flags);
};

void vdma_init_delayed_work(struct delayed_work *work, work_func_t run);
void vdma_schedule_delayed_work(struct delayed_work *work, unsigned long delay);

bool vdma_signal_pending(void);
bool vdma_fatal_signal_pending(void);

/* The current task's user, with a reference. */
struct user_struct *vdma_get_user(void);
void vdma_put_user(struct user_struct *user);
/* Charges pages to a user, within RLIMIT_MEMLOCK of the current task: -ENOMEM beyond it. */
int vdma_charge_user(struct user_struct *user, unsigned long pages);
void vdma_uncharge_user(struct user_struct *user, unsigned long pages);
void vdma_count_pinned(struct mm_struct *mm, long pages);

/* The device and its parent: the transport's device is what sleeps and is reset. */
bool vdma_device_trylock(struct device *dev);
void vdma_device_unlock(struct device *dev);

/* Whether the machine sleeps, or is about to end: devices are being shut down. */
bool vdma_system_is_ending(void);

/* Waits until every task has slept, or been in user space: no code runs that was entered before. */
void vdma_synchronize_rcu_tasks(void);

/* The mount by which a file was opened, with a reference. */
struct vfsmount *vdma_file_mount(struct file *file);

#endif
