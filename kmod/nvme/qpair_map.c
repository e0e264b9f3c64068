// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the holder of a queue pair maps of it. All pages are inserted by the fault handler, under
 * vql_attach_lock and only while the queue pair is live; so once that has changed under the same
 * lock a zap leaves nothing behind.
 */
#include <linux/mm.h>

#include "nvme/ctrl.h"

/* Mappings of the parts: each begins at its own multiple of this. */
#define PART_SHIFT 32
/* All that is zapped when the queue pair ends: from the queues up to the DMA tables. */
#define ZAP_FROM VQL_QPAIR_MAP_SQ
#define ZAP_BYTES (VQL_QPAIR_MAP_DMA(0) - VQL_QPAIR_MAP_SQ)

/* The memory of a part. @pfn for what is not struct vql_coherent. False: there is no such part. */
static bool qpair_part(struct vql_qpair *qp, unsigned long part, struct vql_coherent **mem,
		       unsigned long *pfn, size_t *bytes)
{
	struct vql_ctrl *ctrl = qp->ctrl;

	*mem = NULL;
	*bytes = PAGE_SIZE;
	switch (part << PART_SHIFT) {
	case VQL_QPAIR_MAP_STATUS: *pfn = page_to_pfn(virt_to_page(qp->status)); return true;
	case VQL_QPAIR_MAP_DOORBELL:
		*pfn = (pci_resource_start(ctrl->pdev, 0) + NVME_REG_DBS + qp->doorbell) >>
		       PAGE_SHIFT;
		return true;
	case VQL_QPAIR_MAP_SQ: *mem = &qp->sq; break;
	case VQL_QPAIR_MAP_CQ: *mem = &qp->cq; break;
	case VQL_QPAIR_MAP_POOL: *mem = &qp->pool; break;
	case VQL_QPAIR_MAP_SHADOW: *mem = &ctrl->shadow; break;
	case VQL_QPAIR_MAP_EVENTIDX: *mem = &ctrl->event_index; break;
	default: return false;
	}
	if ((*mem == &ctrl->shadow || *mem == &ctrl->event_index) && !qp->has_shadow)
		return false;
	*bytes = (*mem)->bytes;
	return (*mem)->cpu;
}

/* The whole part at once, as far as the VMA has it: the data path is to take no fault. */
static vm_fault_t insert_pages(struct vm_area_struct *vma, struct vql_coherent *mem,
			       unsigned long first)
{
	unsigned long address = vma->vm_start;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct sg_page_iter iter;

	for_each_sgtable_page(&mem->pages, &iter, first)
	{
		if (address >= vma->vm_end)
			break;
		ret = vmf_insert_pfn(vma, address, page_to_pfn(sg_page_iter_page(&iter)));
		if (ret != VM_FAULT_NOPAGE)
			break;
		address += PAGE_SIZE;
	}
	return ret;
}

static vm_fault_t qpair_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct vql_qpair *qp = vma->vm_file->private_data;
	unsigned long part = vma->vm_pgoff >> (PART_SHIFT - PAGE_SHIFT);
	unsigned long first = vma->vm_pgoff - (part << (PART_SHIFT - PAGE_SHIFT));
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct vql_coherent *mem;
	unsigned long pfn;
	size_t bytes;

	mutex_lock(&vql_attach_lock);
	if (!vql_qpair_is_live(qp) && part << PART_SHIFT != VQL_QPAIR_MAP_STATUS)
		goto out;
	if (!qpair_part(qp, part, &mem, &pfn, &bytes))
		goto out;
	ret = mem ? insert_pages(vma, mem, first) : vmf_insert_pfn(vma, vmf->address, pfn);
out:
	mutex_unlock(&vql_attach_lock);
	return ret;
}

static const struct vm_operations_struct qpair_vm_ops = {
	.fault = qpair_fault,
};

int vql_qpair_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct vql_qpair *qp = file->private_data;
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT;
	u64 part = offset >> PART_SHIFT;
	struct vql_coherent *mem;
	bool exists, is_read_only;
	unsigned long pfn;
	size_t bytes;

	if (!(vma->vm_flags & VM_SHARED) || part << PART_SHIFT != offset)
		return -EINVAL;
	if (offset >= VQL_QPAIR_MAP_DMA(0)) {
		part -= VQL_QPAIR_MAP_DMA(0) >> PART_SHIFT;
		return part < VQL_MAX_ATTACHMENTS ? vql_attach_mmap(qp, (u32)part, vma) : -EINVAL;
	}
	/* Live or not is for the fault handler: here it may change before the call returns. */
	mutex_lock(&vql_attach_lock);
	exists = vql_qpair_is_live(qp) || offset == VQL_QPAIR_MAP_STATUS;
	exists = exists && qpair_part(qp, part, &mem, &pfn, &bytes);
	mutex_unlock(&vql_attach_lock);
	if (!exists)
		return vql_qpair_is_live(qp) ? -EINVAL : -ENODEV;
	if (vma->vm_end - vma->vm_start != bytes)
		return -EINVAL;
	is_read_only = offset == VQL_QPAIR_MAP_STATUS || offset == VQL_QPAIR_MAP_EVENTIDX;
	if (is_read_only && vma->vm_flags & VM_WRITE)
		return -EACCES;

	vm_flags_mod(vma, VM_PFNMAP | VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP,
		     is_read_only ? VM_MAYWRITE : 0);
	if (offset == VQL_QPAIR_MAP_DOORBELL) {
		vm_flags_set(vma, VM_IO);
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	}
	vma->vm_ops = &qpair_vm_ops;
	return 0;
}

void vql_qpair_zap(struct vql_qpair *qp)
{
	lockdep_assert_held(&vql_attach_lock);
	unmap_mapping_range(qp->mapping, ZAP_FROM, ZAP_BYTES, 1);
}
