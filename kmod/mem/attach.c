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
 *
 * vql_attach_lock is what all guests' page faults wait for, so nothing that grows with a guest's memory is done
 * under it. A view is made without it, and then published; one that has ended is taken off the lists, and unmapped
 * without it. What keeps things there meanwhile: the view's references on the mspace and its pages, and ctrl->mappers,
 * for which the end of the hardware waits (vql_attach_drop_ctrl()).
 */
#include <linux/dma-mapping.h>
#include <linux/file.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <linux/wait.h>
#include "nvme/ctrl.h"
#include "mem/mspace.h"

DEFINE_MUTEX(vql_attach_lock);

/* Some ctrl->mappers has become less. */
static DECLARE_WAIT_QUEUE_HEAD(mappers_wait);

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
	refcount_t refs;       /* of the structure and its table: who maps that has one, too */
	struct vql_mspace *ms; /* a reference, and one on its pages */
	struct vql_ctrl *ctrl; /* a reference */
	struct device *dev;    /* there while there are attachments, or ctrl->mappers */
	u64 *table; /* vmalloc_user(): pages of it outlive the view where they are mapped */
};

struct attachment {
	struct list_head in_qpair;
	struct list_head in_view;
	struct vql_qpair *qp; /* no reference: it drops its attachments before it goes */
	struct view *view;
	u32 slot;
	u64 carried; /* vql_attach_carry_over() was here: which one */
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

/* NULL: it cannot be mapped, and the log says why. */
static struct chunk_dma *chunk_dma_create(struct vql_chunk *chunk, struct vql_ctrl *ctrl,
					  struct device *dev, int *err)
{
	size_t bytes = (size_t)chunk->pages << PAGE_SHIFT;
	struct chunk_dma *dma = kmalloc(sizeof(*dma), GFP_KERNEL);

	*err = -ENOMEM;
	if (!dma)
		return NULL;
	dma->addr =
		dma_map_page_attrs(dev, chunk->first, 0, bytes, chunk_direction(chunk), NO_SYNC);
	*err = dma_mapping_error(dev, dma->addr);
	if (*err) {
		dev_err(dev, "vqlane: cannot map %zu bytes of guest memory at %pap for DMA: %d\n",
			bytes, &(phys_addr_t){page_to_phys(chunk->first)}, *err);
		goto err_free;
	}
	dma->ctrl = ctrl;
	dma->dev = dev;
	dma->refs = 1;
	if (!is_bounced(dev, dma->addr, page_to_phys(chunk->first)))
		return dma;
	dev_err(dev, "vqlane: guest memory at %pap would be bounced (swiotlb): not usable\n",
		&(phys_addr_t){page_to_phys(chunk->first)});
	dma_unmap_page_attrs(dev, dma->addr, bytes, chunk_direction(chunk), NO_SYNC);
	*err = -EIO;
err_free:
	kfree(dma);
	return NULL;
}

static void chunk_dma_destroy(struct vql_chunk *chunk, struct chunk_dma *dma)
{
	dma_unmap_page_attrs(dma->dev, dma->addr, (size_t)chunk->pages << PAGE_SHIFT,
			     chunk_direction(chunk), NO_SYNC);
	kfree(dma);
}

/* Without vql_attach_lock. The chunk's DMA address for the view's controller. */
static int chunk_dma_get(struct vql_chunk *chunk, const struct view *view, u64 *addr)
{
	struct chunk_dma *dma, *made = NULL;
	int err;

	mutex_lock(&vql_attach_lock);
	dma = chunk_dma_find(chunk, view->ctrl);
	if (!dma) {
		mutex_unlock(&vql_attach_lock);
		made = chunk_dma_create(chunk, view->ctrl, view->dev, &err);
		if (!made)
			return err;
		mutex_lock(&vql_attach_lock);
		dma = chunk_dma_find(chunk, view->ctrl); /* somebody else was quicker? */
	}
	if (dma) {
		dma->refs++;
	} else {
		dma = made;
		made = NULL;
		list_add(&dma->list, &chunk->dma);
	}
	*addr = dma->addr;
	mutex_unlock(&vql_attach_lock);
	if (made)
		chunk_dma_destroy(chunk, made);
	return 0;
}

/* Without vql_attach_lock. */
static void chunk_dma_put(struct vql_chunk *chunk, const struct vql_ctrl *ctrl)
{
	struct chunk_dma *dma;

	mutex_lock(&vql_attach_lock);
	dma = chunk_dma_find(chunk, ctrl);
	if (WARN_ON_ONCE(!dma) || --dma->refs)
		dma = NULL;
	else
		list_del(&dma->list);
	mutex_unlock(&vql_attach_lock);
	if (dma)
		chunk_dma_destroy(chunk, dma);
}

/* Map all chunks of the view's mspace, and fill its table. Without vql_attach_lock. */
static int view_map(struct view *view)
{
	struct vql_mspace *ms = view->ms;
	u64 addr;
	u32 i;

	for (i = 0; i < ms->nchunks; i++) {
		const struct vql_placed_chunk *at = &ms->chunks[i];
		int err = chunk_dma_get(at->chunk, view, &addr);
		u32 page;

		if (err) {
			while (i--)
				chunk_dma_put(ms->chunks[i].chunk, view->ctrl);
			return err;
		}
		for (page = 0; page < at->chunk->pages; page++)
			view->table[at->first_page + page] = addr + ((u64)page << PAGE_SHIFT);
		cond_resched();
	}
	return 0;
}

static void view_unmap(struct view *view)
{
	struct vql_mspace *ms = view->ms;
	u32 i;

	for (i = 0; i < ms->nchunks; i++) {
		chunk_dma_put(ms->chunks[i].chunk, view->ctrl);
		cond_resched();
	}
}

static struct view *view_find(struct vql_mspace *ms, const struct vql_ctrl *ctrl)
{
	struct view *view;

	list_for_each_entry(view, &ms->views, list) if (view->ctrl == ctrl) return view;
	return NULL;
}

/* Under vql_attach_lock. Who waits for it without (vql_attach_drop_ctrl()) finds all unmapped. */
static void stop_mapping(struct vql_ctrl *ctrl)
{
	smp_store_release(&ctrl->mappers, ctrl->mappers - 1);
	wake_up_all(&mappers_wait);
}

static void view_put(struct view *view)
{
	if (!refcount_dec_and_test(&view->refs))
		return;
	vfree(view->table);
	vql_ctrl_put(view->ctrl);
	kfree(view);
}

/* Its mappings are gone, or there are none. Without vql_attach_lock. */
static void view_let_go(struct view *view)
{
	mutex_lock(&vql_attach_lock);
	stop_mapping(view->ctrl);
	mutex_unlock(&vql_attach_lock);
	vql_mspace_put_pages(view->ms);
	vql_mspace_put(view->ms);
	view_put(view);
}

/*
 * One that nobody knows yet; ctrl->mappers counts it. Under vql_attach_lock, which it lets go of in between; who has
 * the queue pair and the mspace referenced looks again then whether all is as it was.
 */
static struct view *view_create(struct vql_mspace *ms, struct vql_ctrl *ctrl)
{
	struct device *dev = vql_ctrl_dma_dev(ctrl);
	struct view *view;
	int err = -ENOMEM;

	if (!dev)
		return ERR_PTR(-ENODEV);
	view = kzalloc(sizeof(*view), GFP_KERNEL);
	if (!view)
		return ERR_PTR(-ENOMEM);
	refcount_set(&view->refs, 1);
	INIT_LIST_HEAD(&view->list);
	INIT_LIST_HEAD(&view->all);
	INIT_LIST_HEAD(&view->attachments);
	vql_mspace_get(ms);
	vql_mspace_get_pages(ms);
	view->ms = ms;
	vql_ctrl_get(ctrl);
	view->ctrl = ctrl;
	view->dev = dev;
	ctrl->mappers++;
	mutex_unlock(&vql_attach_lock);

	view->table = vmalloc_user(PAGE_ALIGN(ms->pages * sizeof(u64)));
	if (view->table)
		err = view_map(view);
	if (err)
		view_let_go(view);
	mutex_lock(&vql_attach_lock);
	return err ? ERR_PTR(err) : view;
}

/* From now on its attachments keep the controller's hardware. */
static void view_publish(struct view *view)
{
	list_add(&view->list, &view->ms->views);
	list_add(&view->all, &views);
	stop_mapping(view->ctrl);
}

/* The last attachment is gone. It is unmapped by vql_attach_free_ended(). */
static void view_end(struct view *view, struct list_head *ended)
{
	view->ctrl->mappers++;
	list_del_init(&view->all);
	list_move(&view->list, ended);
}

void vql_attach_free_ended(struct list_head *ended)
{
	struct view *view, *next;

	list_for_each_entry_safe(view, next, ended, list)
	{
		view_unmap(view);
		view_let_go(view);
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

static struct attachment *attachment_of(struct vql_mspace *ms, const struct vql_qpair *qp)
{
	struct view *view = view_find(ms, qp->ctrl);
	struct attachment *att;

	if (view)
		list_for_each_entry(att, &view->attachments, in_view) if (att->qp == qp) return att;
	return NULL;
}

/*
 * Under vql_attach_lock, which it lets go of while it makes a view. The caller has both referenced, and @file, if there
 * is one: whoever closed that off meanwhile has seen to it that nobody is attached. A queue pair that is live no more is
 * not attached, since nobody would end it.
 */
static struct attachment *attach(struct vql_qpair *qp, struct vql_mspace *ms,
				 const struct file *file, struct list_head *ended)
{
	struct attachment *att = attachment_of(ms, qp), *made;
	struct view *view = view_find(ms, qp->ctrl), *mine = NULL;
	int slot;

	if (att)
		return att;
	made = kzalloc(sizeof(*made), GFP_KERNEL);
	if (!made)
		return ERR_PTR(-ENOMEM);
	if (!view) {
		mine = view_create(ms, qp->ctrl);
		if (IS_ERR(mine)) {
			kfree(made);
			return ERR_CAST(mine);
		}
		att = attachment_of(ms, qp);
		view = view_find(ms, qp->ctrl);
	}
	slot = free_slot(qp);
	if (!att &&
	    (ms->revoked || !vql_qpair_is_live(qp) || (file && IS_ERR(vql_mspace_of_file(file)))))
		slot = -ENODEV;
	if (mine && (att || view || slot < 0))
		list_add(&mine->list, ended); /* nobody knows it; mappers counts it */
	if (att || slot < 0) {
		kfree(made);
		return att ?: ERR_PTR(slot);
	}
	if (!view) {
		view = mine;
		view_publish(view);
	}
	made->qp = qp;
	made->view = view;
	made->slot = slot;
	list_add_tail(&made->in_qpair, &vql_qpair_attachments(qp)->list);
	list_add_tail(&made->in_view, &view->attachments);
	return made;
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
	LIST_HEAD(ended);
	int ret;

	if (!file)
		return -EBADF;
	mutex_lock(&vql_attach_lock);
	ms = vql_mspace_of_file(file);
	if (IS_ERR(ms)) {
		ret = PTR_ERR(ms);
	} else {
		att = attach(qp, ms, file, &ended);
		ret = PTR_ERR_OR_ZERO(att);
		if (!ret) {
			ret = att->slot;
			*pages = ms->pages;
		}
	}
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
	fput(file);
	return ret;
}

int vql_attach_own(struct vql_qpair *qp, struct vql_mspace *ms, u64 *dma)
{
	const struct view *view = NULL;
	struct attachment *att;
	LIST_HEAD(ended);
	u32 i;

	mutex_lock(&vql_attach_lock);
	att = attach(qp, ms, NULL, &ended);
	if (!IS_ERR(att))
		view = att->view;
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
	/* The queue pair stays live, and @ms is not revoked: so the view stays. */
	for (i = 0; view && i < ms->nchunks; i++)
		dma[i] = view->table[ms->chunks[i].first_page];
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
	struct view *view = NULL;
	struct attachment *att;
	u64 bytes = 0;
	int ret;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_WRITE)
		return -EPERM;
	vm_flags_mod(vma, VM_DONTCOPY, VM_MAYWRITE);
	mutex_lock(&vql_attach_lock);
	att = attachment_by_slot(qp, slot);
	if (att) {
		view = att->view;
		bytes = PAGE_ALIGN(view->ms->pages * sizeof(u64));
		refcount_inc(&view->refs);
	}
	mutex_unlock(&vql_attach_lock);
	if (!view)
		return -ENOENT;
	if (vma->vm_end - vma->vm_start != bytes)
		ret = -EINVAL;
	else
		/* Takes references on the table's pages: a mapping may outlive its attachment. */
		ret = remap_vmalloc_range(vma, view->table, 0);
	view_put(view);
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
	/* What others are making finds no live queue pair to be for; what others took away they unmap. */
	wait_event(mappers_wait, !smp_load_acquire(&ctrl->mappers));
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

/* Under vql_attach_lock: an attachment of @old that is not @carried yet and of use. */
static struct attachment *next_to_carry(struct vql_mspace *old, u64 carried)
{
	struct attachment *att;
	struct view *view;

	list_for_each_entry(view, &old->views, list) list_for_each_entry(
		att, &view->attachments,
		in_view) if (att->carried != carried && vql_qpair_is_live(att->qp)) return att;
	return NULL;
}

/* One at a time, and then it looks anew: attachments may end while the lock is let go of. */
void vql_attach_carry_over(struct vql_mspace *old, struct vql_mspace *ms)
{
	static u64 count; /* under vql_attach_lock; never 0 */
	struct attachment *att, *made;
	struct vql_qpair *qp;
	LIST_HEAD(ended);
	u64 carried;

	mutex_lock(&vql_attach_lock);
	carried = ++count;
	while ((att = next_to_carry(old, carried))) {
		att->carried = carried;
		qp = att->qp;
		vql_qpair_get(qp);
		made = attach(qp, ms, NULL, &ended);
		if (IS_ERR(made))
			pr_warn("vqlane: %s: no DMA to a guest's new memory map: %ld\n",
				vql_ctrl_name(qp->ctrl), PTR_ERR(made));
		mutex_unlock(&vql_attach_lock);
		vql_qpair_put(qp);
		mutex_lock(&vql_attach_lock);
	}
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
}
