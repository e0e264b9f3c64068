// SPDX-License-Identifier: GPL-2.0-only
/*
 * The files of an mspace: through them the daemon maps a guest's memory and names it to a queue pair.
 *
 * Mapping by PFN serves private and shared guest memory alike, and the pages can be taken away: a
 * mapping is filled by page faults and zapped when the file is closed off. By its nature nobody can
 * pin a page from there (io_uring must bounce).
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include "mem/mspace.h"

/* Pages mapped around a faulting one: what one page of page table entries holds. */
#define FAULT_AROUND PTRS_PER_PTE

struct mspace_file {
	struct list_head list;         /* ms->files */
	struct vql_mspace *ms;         /* a reference */
	struct address_space *mapping; /* this file's alone */
	bool closed_off; /* under vql_attach_lock: maps nothing, attaches nothing any more */
};

static const struct file_operations mspace_fops;

/*
 * Zap the mappings of its present files and make them useless for more. Under vql_attach_lock, which
 * a page fault takes as well: so it either inserted its page before the zap, or sees that the file is
 * closed off.
 */
void vql_mspace_close_files(struct vql_mspace *ms)
{
	struct mspace_file *mf;

	lockdep_assert_held(&vql_attach_lock);
	list_for_each_entry(mf, &ms->files, list)
	{
		if (mf->closed_off)
			continue;
		mf->closed_off = true;
		unmap_mapping_range(mf->mapping, 0, 0, 1);
	}
}

struct vql_mspace *vql_mspace_of_file(const struct file *file)
{
	struct mspace_file *mf = file->private_data;

	lockdep_assert_held(&vql_attach_lock);
	if (file->f_op != &mspace_fops)
		return ERR_PTR(-EINVAL);
	return mf->closed_off ? ERR_PTR(-ENODEV) : mf->ms;
}

static struct vql_placed_chunk *chunk_at(struct vql_mspace *ms, u64 page)
{
	u32 low = 0, high = ms->nchunks;

	while (low < high) {
		u32 mid = low + (high - low) / 2;
		struct vql_placed_chunk *at = &ms->chunks[mid];

		if (page < at->first_page)
			high = mid;
		else if (page >= at->first_page + at->chunk->pages)
			low = mid + 1;
		else
			return at;
	}
	return NULL;
}

static vm_fault_t mspace_map_around(struct vm_fault *vmf, const struct vql_placed_chunk *at)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = ALIGN_DOWN(vmf->address, FAULT_AROUND * PAGE_SIZE);
	unsigned long end = min(addr + FAULT_AROUND * PAGE_SIZE, vma->vm_end);
	pgprot_t prot =
		vm_get_page_prot(at->chunk->read_only ? vma->vm_flags & ~VM_WRITE : vma->vm_flags);
	/* @page may wrap below the chunk's first; the comparison is for its pages alone. */
	u64 page;
	vm_fault_t ret;

	addr = max(addr, vma->vm_start);
	page = linear_page_index(vma, addr) - at->first_page;
	/* The page that is asked for first: what it returns counts. */
	ret = vmf_insert_pfn_prot(vma, vmf->address,
				  page_to_pfn(at->chunk->first) + vmf->pgoff - at->first_page,
				  prot);
	for (; addr < end && ret == VM_FAULT_NOPAGE; addr += PAGE_SIZE, page++)
		if (page < at->chunk->pages &&
		    vmf_insert_pfn_prot(vma, addr, page_to_pfn(at->chunk->first) + page, prot) !=
			    VM_FAULT_NOPAGE)
			break;
	return ret;
}

static vm_fault_t mspace_fault(struct vm_fault *vmf)
{
	struct mspace_file *mf = vmf->vma->vm_file->private_data;
	const struct vql_placed_chunk *at;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	mutex_lock(&vql_attach_lock);
	at = mf->closed_off ? NULL : chunk_at(mf->ms, vmf->pgoff);
	if (at)
		ret = mspace_map_around(vmf, at);
	mutex_unlock(&vql_attach_lock);
	return ret;
}

/*
 * A write to a page that is mapped without write access. It is refused for read-only memory, of which
 * the page may not even be the VMM's to write (a shared library's, the zero page).
 */
static vm_fault_t mspace_mkwrite(struct vm_fault *vmf)
{
	struct mspace_file *mf = vmf->vma->vm_file->private_data;
	const struct vql_placed_chunk *at;
	vm_fault_t ret;

	mutex_lock(&vql_attach_lock);
	at = mf->closed_off ? NULL : chunk_at(mf->ms, vmf->pgoff);
	ret = at && !at->chunk->read_only ? 0 : VM_FAULT_SIGBUS;
	mutex_unlock(&vql_attach_lock);
	return ret;
}

static const struct vm_operations_struct mspace_vm_ops = {
	.fault = mspace_fault,
	.pfn_mkwrite = mspace_mkwrite,
};

static int mspace_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct mspace_file *mf = file->private_data;

	if (mf->ms->user)
		return -EOPNOTSUPP;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff + vma_pages(vma) > mf->ms->pages)
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &mspace_vm_ops;
	return 0;
}

static long mspace_regions(struct vql_mspace *ms, struct vql_mspace_regions __user *arg)
{
	struct vql_mspace_regions regions;
	u32 room;
	int err;

	err = vql_copy_in(&regions, arg, sizeof(regions));
	if (err)
		return err;
	room = regions.nregions;
	regions.nregions = ms->nregions;
	regions.pages = ms->pages;
	if (copy_to_user(arg, &regions, sizeof(regions)))
		return -EFAULT;
	if (room < ms->nregions)
		return -E2BIG;
	if (copy_to_user(u64_to_user_ptr(regions.regions), ms->regions,
			 ms->nregions * sizeof(*ms->regions)))
		return -EFAULT;
	return 0;
}

static long mspace_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct mspace_file *mf = file->private_data;

	switch (cmd) {
	case VQL_IOC_MSPACE_REGIONS: return mspace_regions(mf->ms, (void __user *)arg);
	default: return -ENOTTY;
	}
}

/* A mapping holds its file, so there is none left. */
static int mspace_release(struct inode *inode, struct file *file)
{
	struct mspace_file *mf = file->private_data;

	mutex_lock(&vql_attach_lock);
	list_del(&mf->list);
	mutex_unlock(&vql_attach_lock);
	vql_mspace_put(mf->ms);
	kfree(mf);
	return 0;
}

static const struct file_operations mspace_fops = {
	.owner = THIS_MODULE,
	.release = mspace_release,
	.mmap = mspace_mmap,
	.unlocked_ioctl = mspace_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

int vql_mspace_open(struct vql_mspace *ms)
{
	struct mspace_file *mf = kzalloc(sizeof(*mf), GFP_KERNEL);
	struct file *file;
	int fd;

	if (!mf)
		return -ENOMEM;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto err_free;
	/* An inode of its own, so that zapping its mappings zaps no other's. */
	file = anon_inode_create_getfile("[vqlane-mspace]", &mspace_fops, mf, O_RDWR, NULL);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto err_free;
	}
	mf->mapping = file->f_mapping;
	mf->ms = ms;
	vql_mspace_get(ms);
	mutex_lock(&vql_attach_lock);
	mf->closed_off = ms->revoked;
	list_add(&mf->list, &ms->files);
	mutex_unlock(&vql_attach_lock);
	fd_install(fd, file);
	return fd;

err_free:
	kfree(mf);
	return fd;
}
