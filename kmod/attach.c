// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which queue pair knows which guest memory, and at what DMA addresses.
 *
 *   attachment  a queue pair knows an mspace; has a slot in the queue pair's name space
 *   view        an mspace's DMA addresses for one controller: a table with one word a page; lives as
 *               long as an attachment of one of that controller's queue pairs
 *   chunk_dma   a chunk's mapping for one controller; lives as long as a view of one of the mspaces
 *               in which the chunk stands
 *
 * An attachment ends only when no command of its queue pair can reach the memory any more: its
 * holder said so (detach, yield), or the queue pair is deleted on its controller. So does the DMA
 * mapping then, and the pages are let go after that.
 */
#include <linux/dma-mapping.h>
#include <linux/file.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "mspace.h"

DEFINE_MUTEX(vql_attach_lock);

struct chunk_dma {
	struct list_head list; /* chunk->dma */
	struct vql_ctrl *ctrl;
	struct device *dev;
	dma_addr_t addr;
	u32 refs; /* views */
};

struct view {
	struct list_head list; /* ms->views, then the caller's list of what has ended */
	struct list_head all;
	struct list_head attachments;
	struct vql_mspace *ms; /* a reference */
	struct vql_ctrl *ctrl; /* alive: an attached queue pair holds it */
	u64 *table; /* vmalloc_user(): pages of it outlive the view where they are mapped */
};

struct attachment {
	struct list_head in_qpair;
	struct list_head in_view;
	struct vql_qpair *qp; /* no reference: it drops its attachments before it goes */
	struct view *view;
	u32 slot;
};

static LIST_HEAD(views); /* under vql_attach_lock */

/*
 * CPU and device use the memory at any time, as a guest's drive does: there is no moment to sync at. And the
 * same page may be in two guests' maps, or twice in one, so that mappings overlap, of which the kernel says
 * (CONFIG_DMA_API_DEBUG) that it cannot sync them.
 */
#define NO_SYNC DMA_ATTR_SKIP_CPU_SYNC

static enum dma_data_direction chunk_direction(const struct vql_chunk *chunk)
{
	return chunk->read_only ? DMA_TO_DEVICE : DMA_BIDIRECTIONAL;
}

static struct chunk_dma *chunk_dma_find(struct vql_chunk *chunk, const struct vql_ctrl *ctrl)
{
	struct chunk_dma *dma;

	list_for_each_entry(dma, &chunk->dma, list) if (dma->ctrl == ctrl) return dma;
	return NULL;
}

/*
 * A bounced mapping would need a copy before and after each command, and nobody here sees the commands.
 * Behind an IOMMU dma_need_sync() may also mean that the kernel checks drivers (CONFIG_DMA_API_DEBUG), or
 * that something else was bounced for the device once: there it is seen where the address leads.
 */
static bool is_bounced(struct device *dev, dma_addr_t addr, phys_addr_t phys)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(dev);

	return dma_need_sync(dev, addr) && (!domain || iommu_iova_to_phys(domain, addr) != phys);
}

static struct chunk_dma *chunk_dma_get(struct vql_chunk *chunk, struct vql_ctrl *ctrl,
				       struct device *dev)
{
	size_t bytes = (size_t)chunk->pages << PAGE_SHIFT;
	struct chunk_dma *dma = chunk_dma_find(chunk, ctrl);
	int err;

	if (dma) {
		dma->refs++;
		return dma;
	}
	dma = kmalloc(sizeof(*dma), GFP_KERNEL);
	if (!dma)
		return ERR_PTR(-ENOMEM);
	dma->addr =
		dma_map_page_attrs(dev, chunk->first, 0, bytes, chunk_direction(chunk), NO_SYNC);
	err = dma_mapping_error(dev, dma->addr);
	if (err) {
		dev_err(dev, "vqlane: cannot map %zu bytes of guest memory at %pap for DMA: %d\n",
			bytes, &(phys_addr_t){page_to_phys(chunk->first)}, err);
		goto err_free;
	}
	if (is_bounced(dev, dma->addr, page_to_phys(chunk->first))) {
		dev_err(dev,
			"vqlane: guest memory at %pap would be bounced (swiotlb): not usable\n",
			&(phys_addr_t){page_to_phys(chunk->first)});
		dma_unmap_page_attrs(dev, dma->addr, bytes, chunk_direction(chunk), NO_SYNC);
		err = -EIO;
		goto err_free;
	}
	dma->ctrl = ctrl;
	dma->dev = dev;
	dma->refs = 1;
	list_add(&dma->list, &chunk->dma);
	return dma;

err_free:
	kfree(dma);
	return ERR_PTR(err);
}

static void chunk_dma_put(struct vql_chunk *chunk, const struct vql_ctrl *ctrl)
{
	struct chunk_dma *dma = chunk_dma_find(chunk, ctrl);

	if (WARN_ON_ONCE(!dma) || --dma->refs)
		return;
	list_del(&dma->list);
	dma_unmap_page_attrs(dma->dev, dma->addr, (size_t)chunk->pages << PAGE_SHIFT,
			     chunk_direction(chunk), NO_SYNC);
	kfree(dma);
}

/* Map all chunks of the view's mspace, and fill its table. */
static int view_map(struct view *view, struct device *dev)
{
	struct vql_mspace *ms = view->ms;
	u32 i;

	for (i = 0; i < ms->nchunks; i++) {
		const struct vql_placed_chunk *at = &ms->chunks[i];
		struct chunk_dma *dma = chunk_dma_get(at->chunk, view->ctrl, dev);
		u32 page;

		if (IS_ERR(dma)) {
			while (i--)
				chunk_dma_put(ms->chunks[i].chunk, view->ctrl);
			return PTR_ERR(dma);
		}
		for (page = 0; page < at->chunk->pages; page++)
			view->table[at->first_page + page] = dma->addr + ((u64)page << PAGE_SHIFT);
		cond_resched();
	}
	return 0;
}

static struct view *view_find(struct vql_mspace *ms, const struct vql_ctrl *ctrl)
{
	struct view *view;

	list_for_each_entry(view, &ms->views, list) if (view->ctrl == ctrl) return view;
	return NULL;
}

static struct view *view_create(struct vql_mspace *ms, struct vql_ctrl *ctrl)
{
	struct device *dev = vql_ctrl_dma_dev(ctrl);
	struct view *view;
	int err;

	if (!dev)
		return ERR_PTR(-ENODEV);
	view = kzalloc(sizeof(*view), GFP_KERNEL);
	if (!view)
		return ERR_PTR(-ENOMEM);
	view->table = vmalloc_user(PAGE_ALIGN(ms->pages * sizeof(u64)));
	if (!view->table) {
		err = -ENOMEM;
		goto err_free;
	}
	view->ms = ms;
	view->ctrl = ctrl;
	INIT_LIST_HEAD(&view->attachments);
	err = view_map(view, dev);
	if (err)
		goto err_table;
	vql_mspace_get(ms);
	list_add(&view->list, &ms->views);
	list_add(&view->all, &views);
	return view;

err_table:
	vfree(view->table);
err_free:
	kfree(view);
	return ERR_PTR(err);
}

/* The last attachment is gone. */
static void view_end(struct view *view, struct list_head *ended)
{
	struct vql_mspace *ms = view->ms;
	u32 i;

	for (i = 0; i < ms->nchunks; i++) {
		chunk_dma_put(ms->chunks[i].chunk, view->ctrl);
		cond_resched();
	}
	list_del(&view->all);
	list_move(&view->list, ended);
}

void vql_attach_free_ended(struct list_head *ended)
{
	struct view *view, *next;

	list_for_each_entry_safe(view, next, ended, list)
	{
		vql_mspace_put(view->ms);
		vfree(view->table);
		kfree(view);
	}
}

static struct attachment *attachment_by_slot(struct vql_qpair *qp, u32 slot)
{
	struct attachment *att;

	list_for_each_entry(att, &vql_qpair_attachments(qp)->list,
			    in_qpair) if (att->slot == slot) return att;
	return NULL;
}

/*
 * A slot whose attachment has ended is taken again only after all the others: a holder that detaches
 * it late hits nothing then, instead of another's memory.
 */
static int free_slot(struct vql_qpair *qp)
{
	struct vql_attachments *atts = vql_qpair_attachments(qp);
	u32 slot = atts->next_slot, tries;

	for (tries = 0; tries < VQL_MAX_ATTACHMENTS; tries++) {
		if (!attachment_by_slot(qp, slot)) {
			atts->next_slot = (slot + 1) % VQL_MAX_ATTACHMENTS;
			return slot;
		}
		slot = (slot + 1) % VQL_MAX_ATTACHMENTS;
	}
	return -ENOSPC;
}

static struct attachment *attach(struct vql_qpair *qp, struct vql_mspace *ms)
{
	struct vql_ctrl *ctrl = vql_qpair_ctrl(qp);
	struct view *view = view_find(ms, ctrl);
	struct attachment *att;
	int slot;

	if (view)
		list_for_each_entry(att, &view->attachments, in_view) if (att->qp == qp) return att;
	slot = free_slot(qp);
	if (slot < 0)
		return ERR_PTR(slot);
	att = kzalloc(sizeof(*att), GFP_KERNEL);
	if (!att)
		return ERR_PTR(-ENOMEM);
	if (!view)
		view = view_create(ms, ctrl);
	if (IS_ERR(view)) {
		kfree(att);
		return ERR_CAST(view);
	}
	att->qp = qp;
	att->view = view;
	att->slot = slot;
	list_add_tail(&att->in_qpair, &vql_qpair_attachments(qp)->list);
	list_add_tail(&att->in_view, &view->attachments);
	return att;
}

static void attachment_end(struct attachment *att, struct list_head *ended)
{
	struct view *view = att->view;

	list_del(&att->in_qpair);
	list_del(&att->in_view);
	kfree(att);
	if (list_empty(&view->attachments))
		view_end(view, ended);
}

int vql_attach(struct vql_qpair *qp, int fd, u64 *pages)
{
	struct file *file = fget(fd);
	struct attachment *att;
	struct vql_mspace *ms;
	int ret;

	if (!file)
		return -EBADF;
	mutex_lock(&vql_attach_lock);
	ms = vql_mspace_of_file(file);
	if (IS_ERR(ms)) {
		ret = PTR_ERR(ms);
	} else {
		att = attach(qp, ms);
		ret = PTR_ERR_OR_ZERO(att);
		if (!ret) {
			ret = att->slot;
			*pages = ms->pages;
		}
	}
	mutex_unlock(&vql_attach_lock);
	fput(file);
	return ret;
}

int vql_attach_own(struct vql_qpair *qp, struct vql_mspace *ms, u64 *dma)
{
	struct attachment *att;
	u32 i;

	mutex_lock(&vql_attach_lock);
	att = attach(qp, ms);
	for (i = 0; !IS_ERR(att) && i < ms->nchunks; i++)
		dma[i] = chunk_dma_find(ms->chunks[i].chunk, att->view->ctrl)->addr;
	mutex_unlock(&vql_attach_lock);
	return PTR_ERR_OR_ZERO(att);
}

int vql_detach(struct vql_qpair *qp, u32 slot)
{
	struct attachment *att;
	LIST_HEAD(ended);

	mutex_lock(&vql_attach_lock);
	att = attachment_by_slot(qp, slot);
	if (att)
		attachment_end(att, &ended);
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
	return att ? 0 : -ENOENT;
}

int vql_attach_mmap(struct vql_qpair *qp, u32 slot, struct vm_area_struct *vma)
{
	struct attachment *att;
	int ret;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
	vm_flags_mod(vma, VM_DONTCOPY, VM_MAYWRITE);
	mutex_lock(&vql_attach_lock);
	att = attachment_by_slot(qp, slot);
	if (!att)
		ret = -ENOENT;
	else if (vma->vm_end - vma->vm_start != PAGE_ALIGN(att->view->ms->pages * sizeof(u64)))
		ret = -EINVAL;
	else
		/* Takes references on the table's pages: a mapping may outlive its attachment. */
		ret = remap_vmalloc_range(vma, att->view->table, 0);
	mutex_unlock(&vql_attach_lock);
	return ret;
}

void vql_attach_drop_qpair(struct vql_qpair *qp)
{
	struct attachment *att, *next;
	LIST_HEAD(ended);

	mutex_lock(&vql_attach_lock);
	list_for_each_entry_safe(att, next, &vql_qpair_attachments(qp)->list, in_qpair)
		attachment_end(att, &ended);
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
}

static void view_detach_all(struct view *view, struct list_head *ended)
{
	struct attachment *att, *next;

	/* The last of them ends the view, which then is not touched again here. */
	list_for_each_entry_safe(att, next, &view->attachments, in_view)
	{
		bool last = list_is_last(&att->in_view, &view->attachments);

		attachment_end(att, ended);
		if (last)
			break;
	}
}

void vql_attach_drop_ctrl(struct vql_ctrl *ctrl)
{
	struct view *view, *next;
	LIST_HEAD(ended);

	mutex_lock(&vql_attach_lock);
	list_for_each_entry_safe(view, next, &views, all) if (view->ctrl == ctrl)
		view_detach_all(view, &ended);
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
}

struct vql_qpair *vql_attach_any_qpair(struct vql_mspace *ms)
{
	struct attachment *att;
	struct view *view;

	list_for_each_entry(view, &ms->views, list)
	{
		list_for_each_entry(att, &view->attachments, in_view)
		{
			if (vql_qpair_is_own(att->qp))
				continue;
			vql_qpair_get(att->qp);
			return att->qp;
		}
	}
	return NULL;
}

void vql_attach_end(struct vql_mspace *ms, struct vql_qpair *qp, struct list_head *ended)
{
	struct view *view, *next_view;
	struct attachment *att;

	list_for_each_entry_safe(view, next_view, &ms->views, list)
	{
		if (!qp) {
			view_detach_all(view, ended);
			continue;
		}
		/* A queue pair is attached to an mspace once at most. */
		list_for_each_entry(att, &view->attachments, in_view)
		{
			if (att->qp == qp) {
				attachment_end(att, ended);
				return;
			}
		}
	}
}

void vql_attach_carry_over(struct vql_mspace *old, struct vql_mspace *ms)
{
	struct attachment *att, *made;
	struct view *view;

	list_for_each_entry(view, &old->views, list)
	{
		list_for_each_entry(att, &view->attachments, in_view)
		{
			made = attach(att->qp, ms);
			if (IS_ERR(made))
				pr_warn("vqlane: %s: no DMA to a guest's new memory map: %ld\n",
					vql_ctrl_name(view->ctrl), PTR_ERR(made));
		}
	}
}
