// SPDX-License-Identifier: GPL-2.0

#include <linux/cpumask.h>
#include <linux/cred.h>
#include <linux/dma-mapping.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>

#include "shim.h"

#define CREATE_TRACE_POINTS
#include "tracepoints.h"

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

/* sg_init_one() for an entry that has been zeroed. */
void vdma_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len)
{
	sg_set_buf(sg, buf, len);
	sg_mark_end(sg);
}

/* Pages of the folio from this one on. */
static unsigned long vdma_folio_rest(struct folio *folio, struct page *page)
{
	if (!folio_test_large(folio))
		return 1;
	return folio_nr_pages(folio) - folio_page_idx(folio, page);
}

/* Steps from folio to folio: dirtiness belongs to the folio, not to each of its pages. */
#define vdma_for_each_folio(folio, page, count)						\
	for (unsigned long _i = 0;							\
	     _i < (count) && (folio = page_folio((page) + _i), true);			\
	     _i += vdma_folio_rest(folio, (page) + _i))

void vdma_pages_mark_dirty(struct page *page, unsigned long count)
{
	struct folio *folio;

	vdma_for_each_folio(folio, page, count) {
		/* If writeback cleans it from here on, the check after the transfer finds out. */
		if (folio_test_dirty(folio))
			continue;
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

bool vdma_mapping_is_shared(const struct vm_area_desc *desc)
{
	/* VMA_SHARED is taken from mappings of files that are open for reading only (do_mmap). */
	return vma_desc_test(desc, VMA_MAYSHARE_BIT);
}

void vdma_mapping_set_cache(struct vm_area_desc *desc, unsigned int mode)
{
	if (mode == 1)
		desc->page_prot = pgprot_writecombine(desc->page_prot);
	else if (mode == 2)
		desc->page_prot = pgprot_noncached(desc->page_prot);
}

void vdma_mapping_remap_io(struct vm_area_desc *desc, unsigned long pfn)
{
	mmap_action_ioremap_full(desc, pfn);
}

void vdma_mapping_set_pfnmap(struct vm_area_desc *desc)
{
	/* As io_remap_pfn_range() does: device memory is not encrypted, where the guest's own is. */
	desc->page_prot = pgprot_decrypted(desc->page_prot);
	vma_desc_set_flags(desc, VMA_IO_BIT, VMA_PFNMAP_BIT, VMA_DONTEXPAND_BIT, VMA_DONTDUMP_BIT);
}

void vdma_mapping_set_fixed(struct vm_area_desc *desc)
{
	vma_desc_set_flags(desc, VMA_DONTEXPAND_BIT, VMA_DONTDUMP_BIT);
}

pgoff_t vdma_vma_pgoff(const struct vm_area_struct *vma)
{
	return vma->vm_pgoff;
}

void vdma_vma_forbid_writing(struct vm_area_struct *vma)
{
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE);
}

void __iomem *vdma_ioremap(phys_addr_t address, size_t size, unsigned int mode)
{
	switch (mode) {
	case 0:
		return ioremap_cache(address, size);
	case 1:
		return ioremap_wc(address, size);
	default:
		return ioremap(address, size);
	}
}

void vdma_memcpy_fromio(void *to, const void __iomem *from, size_t size)
{
	memcpy_fromio(to, from, size);
}

void vdma_memcpy_toio(void __iomem *to, const void *from, size_t size)
{
	memcpy_toio(to, from, size);
}

struct page *vdma_alloc_pages(gfp_t gfp, unsigned int order)
{
	return alloc_pages(gfp, order);
}

void vdma_get_page(struct page *page)
{
	get_page(page);
}

void vdma_put_page(struct page *page)
{
	put_page(page);
}

phys_addr_t vdma_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

void *vdma_page_address(struct page *page)
{
	return page_address(page);
}

bool vdma_page_is_huge(struct page *page)
{
	return folio_order(page_folio(page)) >= PMD_ORDER;
}

bool vdma_page_is_anonymous(struct page *page)
{
	return folio_test_anon(page_folio(page));
}

unsigned int vdma_virtqueue_free(const struct virtqueue *queue)
{
	return queue->num_free;
}

/* Sets the affinity of a queue to each `queues`th CPU; it changes when CPUs go offline. */
void vdma_virtqueue_spread_interrupts(struct virtqueue *queue, unsigned int queues)
{
	cpumask_var_t cpus;
	unsigned int cpu;

	if (!zalloc_cpumask_var(&cpus, GFP_KERNEL))
		return;
	for_each_online_cpu(cpu) {
		if (cpu % queues == queue->index)
			cpumask_set_cpu(cpu, cpus);
	}
	if (!cpumask_empty(cpus))
		virtqueue_set_affinity(queue, cpus);
	free_cpumask_var(cpus);
}

int vdma_set_dma_mask(struct virtio_device *vdev, unsigned int bits)
{
	return dma_set_mask_and_coherent(vdev->dev.parent, DMA_BIT_MASK(bits));
}

dma_addr_t vdma_dma_map_page(struct virtqueue *queue, struct page *page, unsigned int offset,
			     unsigned int size, bool write)
{
	struct device *dev = virtqueue_dma_dev(queue);
	enum dma_data_direction direction = write ? DMA_FROM_DEVICE : DMA_TO_DEVICE;
	dma_addr_t address;

	if (!dev)
		return page_to_phys(page) + offset;
	address = dma_map_page(dev, page, offset, size, direction);
	if (dma_mapping_error(dev, address))
		return DMA_MAPPING_ERROR;
	dma_unmap_page_attrs(dev, address, size, direction, DMA_ATTR_SKIP_CPU_SYNC);
	return address;
}

struct file *vdma_uring_file(const struct io_uring_cmd *cmd)
{
	return cmd->file;
}

u32 vdma_uring_operation(const struct io_uring_cmd *cmd)
{
	return cmd->cmd_op;
}

u32 vdma_uring_flags(const struct io_uring_cmd *cmd)
{
	return cmd->flags & IORING_URING_CMD_MASK;
}

u64 vdma_uring_address(const struct io_uring_cmd *cmd)
{
	return READ_ONCE(cmd->sqe->addr);
}

void *vdma_uring_private(struct io_uring_cmd *cmd)
{
	return cmd->pdu;
}

static void vdma_uring_finish(struct io_tw_req request, io_tw_token_t token)
{
	struct io_uring_cmd *cmd = io_uring_cmd_from_tw(request);

	io_uring_cmd_to_pdu(cmd, struct vdma_uring_head)
		->finish(cmd, IO_URING_CMD_TASK_WORK_ISSUE_FLAGS);
}

void vdma_uring_complete_in_task(struct io_uring_cmd *cmd)
{
	io_uring_cmd_complete_in_task(cmd, vdma_uring_finish);
}

bool vdma_task_has_memory(void)
{
	return current->mm && !(current->flags & PF_EXITING);
}

void vdma_trace_submit(u32 device, u32 queue, u16 operation, u64 offset, u64 length, u32 pages,
		       u32 segments)
{
	trace_vdma_submit(device, queue, operation, offset, length, pages, segments);
}

void vdma_trace_complete(u32 device, u32 queue, u16 operation, u64 offset, u64 length, int result,
			 u64 latency)
{
	trace_vdma_complete(device, queue, operation, offset, length, result, latency);
}

bool vdma_tracing(void)
{
	return trace_vdma_submit_enabled() || trace_vdma_complete_enabled();
}

void vdma_cond_resched(void)
{
	cond_resched();
}

struct vdma_plug_callback *vdma_check_plugged(blk_plug_cb_fn unplug, void *key)
{
	struct vdma_plug_callback *callback = NULL;
	struct blk_plug_cb *plug;

	/* The list of callbacks is the task's, which an interrupt may have caught while it uses it. */
	if (!in_task())
		return NULL;
	plug = blk_check_plugged(unplug, key, sizeof(*callback));
	if (plug)
		callback = container_of(plug, struct vdma_plug_callback, plug);
	return callback;
}

void vdma_free_plug_callback(struct vdma_plug_callback *callback)
{
	kfree(callback);
}

void vdma_preempt_disable(void)
{
	preempt_disable();
}

void vdma_preempt_enable(void)
{
	preempt_enable();
}

void vdma_cpu_relax(void)
{
	cpu_relax();
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

bool vdma_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

struct user_struct *vdma_get_user(void)
{
	return get_uid(current_user());
}

void vdma_put_user(struct user_struct *user)
{
	free_uid(user);
}

/* The same count and limit as in __io_account_mem() of io_uring. */
int vdma_charge_user(struct user_struct *user, unsigned long pages)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	long charged = atomic_long_read(&user->locked_vm);

	do {
		if (pages > limit || charged > (long)(limit - pages))
			return -ENOMEM;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &charged, charged + pages));
	return 0;
}

void vdma_uncharge_user(struct user_struct *user, unsigned long pages)
{
	atomic_long_sub(pages, &user->locked_vm);
}

void vdma_count_pinned(struct mm_struct *mm, long pages)
{
	atomic64_add(pages, &mm->pinned_vm);
}

bool vdma_device_trylock(struct device *dev)
{
	if (!device_trylock(dev->parent))
		return false;
	if (device_trylock(dev))
		return true;
	device_unlock(dev->parent);
	return false;
}

void vdma_device_unlock(struct device *dev)
{
	device_unlock(dev);
	device_unlock(dev->parent);
}

bool vdma_system_is_ending(void)
{
	return system_state > SYSTEM_RUNNING;
}

void vdma_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}

struct vfsmount *vdma_file_mount(struct file *file)
{
	return mntget(file->f_path.mnt);
}
