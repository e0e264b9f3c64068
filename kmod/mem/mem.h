/* SPDX-License-Identifier: GPL-2.0-only */
/* Guests' memory, its DMA addresses, and who knows them. */
#ifndef VQL_MEM_H
#define VQL_MEM_H

#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>

#include "core/core.h"

struct vhost_iotlb;

extern struct mutex vql_attach_lock;

/* An mspace from a vhost IOTLB, sharing pages and DMA mappings with @old where they are the same;
 * every attachment of @old is made on the new one too. ERR_PTR on failure: then @old is unchanged.
 */
struct vql_mspace *vql_mspace_from_iotlb(struct vhost_iotlb *iotlb, struct vql_mspace *old);
/* VQL_IOC_MSPACE_CREATE: pin the caller's memory, return a new fd. */
long vql_mspace_create_fd(struct vql_mspace_create __user *arg);
/* A file for @ms in a new fd of the caller. */
int vql_mspace_open(struct vql_mspace *ms);
void vql_mspace_get(struct vql_mspace *ms);
void vql_mspace_put(struct vql_mspace *ms);
/*
 * Close off the present files of @ms: their mappings are zapped (SIGBUS on touch), and they map and
 * attach nothing any more. Files opened later are not concerned. Under vql_attach_lock.
 */
void vql_mspace_close_files(struct vql_mspace *ms);
/*
 * Close off its files, kill every queue pair attached to @ms and end those attachments. After it no
 * DMA into @ms is possible but by those who open it anew. Sleeps.
 */
void vql_mspace_fence(struct vql_mspace *ms);
/*
 * Zap the mappings of its files, end all attachments, unmap and let go of all pages. The caller knows
 * that no DMA is under way (all holders yielded, or vql_mspace_fence()).
 */
void vql_mspace_revoke(struct vql_mspace *ms);

/*
 * Attachments, for qpair.c. vql_attach() maps @ms for @qp's controller (once per controller, shared
 * by its queue pairs) and returns the slot (0…VQL_MAX_ATTACHMENTS-1), with @pages; -ENODEV when the qpair or mspace is
 * dead. @fd is an mspace's file descriptor.
 */
#define VQL_MAX_ATTACHMENTS 4096 /* slots of one queue pair */
int vql_attach(struct vql_qpair *qp, int fd, u64 *pages);
int vql_detach(struct vql_qpair *qp, u32 slot);
/*
 * A queue pair of the module's own: attach it to @ms, and tell the DMA address of each chunk. Under
 * ctrl->lock, the queue pair live, @ms not revoked.
 */
int vql_attach_own(struct vql_qpair *qp, struct vql_mspace *ms, u64 *dma);
/* mmap of VQL_QPAIR_MAP_DMA(slot): read only. */
int vql_attach_mmap(struct vql_qpair *qp, u32 slot, struct vm_area_struct *vma);
/* The qpair has ended (after vql_qpair_kill()): end its attachments. */
void vql_attach_drop_qpair(struct vql_qpair *qp);
/* The hardware goes (driver unbind, after all its qpairs were killed): unmap everything from it. */
void vql_attach_drop_ctrl(struct vql_ctrl *ctrl);

/* What mspace.c keeps in each queue pair. Under vql_attach_lock. */
struct vql_attachments {
	struct list_head list;
	u32 next_slot; /* from here on a free slot is looked for */
};
struct vql_attachments *vql_qpair_attachments(struct vql_qpair *qp);

#endif
