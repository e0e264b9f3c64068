/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the parts of the module need of each other. Each part keeps its own structures to itself,
 * but for what stands here.
 *
 * Who owns what:
 *   ctrl    a bound PCI function; referenced by its char device's open files and its queue pairs,
 *           so it outlives the binding (then VQL_CTRL_DEAD: no hardware behind it).
 *   qpair   a file; owns its queues on the controller and holds a reference on the ctrl.
 *   mspace  referenced by its files, by its disk, and by its attachments. Its pages are let go when
 *           it is revoked or when the last reference goes, whichever is first.
 *   attachment  a queue pair knows an mspace's DMA addresses. Ends by detach, by the qpair's death,
 *           or by the mspace's revocation, always *after* the queue pair was deleted on its
 *           controller or its holder said that no command is under way (yield, detach).
 *   disk    in the module until removed; holds a module reference.
 *
 * Locks, outermost first. None is held while user memory is touched, and none but vql_attach_lock
 * is taken in a page fault handler.
 *   disk->lock (mutex)  one disk's set-up and lease
 *   ctrl->lock (mutex)  one controller's queues and state; held across admin commands
 *   vql_attach_lock (mutex)  all attachments, DMA views, and which pages an mspace has; short,
 *                       no admin command and no waiting under it
 *   spinlocks           leaf: a queue's callback, the admin queue
 */
#ifndef _VQLANE_KMOD_H
#define _VQLANE_KMOD_H

#include <linux/device.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <uapi/linux/vqlane.h>
#include <vqlane/limits.h>
#include <vqlane/policy.h>

/* The queue pairs that the kernel lane has on a controller. */
enum vql_kq_kind {
	VQL_KQ_FAST, /* reads, writes, flushes */
	VQL_KQ_SLOW, /* discards and write zeroes, which may take a drive as long as it likes */
	VQL_KQ_KINDS,
};

struct vql_ctrl;
struct vql_disk;
struct vql_qpair;
struct vql_mspace;
struct vhost_iotlb;

/* ---- main.c: parts start in order and end in reverse; /dev/vqlane/control ---- */

extern struct device *vql_root; /* parent of the disks' vDPA devices */

/*
 * The one way an ioctl argument comes in: copies min(size, known) bytes after checking that the
 * caller's @size field (the first __u32 of each struct) is exactly @bytes. Returns 0, -EFAULT,
 * -E2BIG (larger: a newer daemon) or -EINVAL (smaller).
 */
int vql_copy_in(void *to, const void __user *from, size_t bytes);

/* ---- ctrl.c, admin.c: NVMe controllers ---- */

int vql_ctrl_init(void);
void vql_ctrl_exit(void);

/* For DMA mappings; NULL once the hardware is gone. Under vql_attach_lock. */
struct device *vql_ctrl_dma_dev(struct vql_ctrl *ctrl);
/* For messages, at any time. */
const char *vql_ctrl_name(const struct vql_ctrl *ctrl);
void vql_ctrl_get(struct vql_ctrl *ctrl);
void vql_ctrl_put(struct vql_ctrl *ctrl);
/* The controller of a file of /dev/vqlane/nvme-…, with a reference; ERR_PTR(-EBADF) or -EINVAL. */
struct vql_ctrl *vql_ctrl_of_fd(int fd);
/* A namespace's geometry; as VQL_IOC_NS_INFO. Takes ctrl->lock. */
int vql_ctrl_ns(struct vql_ctrl *ctrl, struct vql_ns_info *info);

/* ---- qpair.c ---- */

/*
 * Delete the queue pair on its controller, whatever it takes (a controller that does not answer is
 * reset or disabled), mark it lost, zap its mappings and wake its holder. When this returns no DMA
 * of its commands happens any more. Idempotent; sleeps. Takes ctrl->lock: not under it, and not
 * under vql_attach_lock. Attachments stay until vql_attach_drop_*.
 */
void vql_qpair_kill(struct vql_qpair *qp);
void vql_qpair_get(struct vql_qpair *qp); /* keeps the structure, not the queues */
void vql_qpair_put(struct vql_qpair *qp);
struct vql_ctrl *vql_qpair_ctrl(struct vql_qpair *qp);
/* Is it the module's own? Those a fence leaves alone: their commands are the module's to end. */
bool vql_qpair_is_own(const struct vql_qpair *qp);

/* ---- mspace.c: guests' memory, its DMA addresses, and who knows them ---- */

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

/* ---- disk.c, vdpa.c: vDPA virtio-blk devices ---- */

int vql_disk_init(void);
void vql_disk_exit(void);
/* The control device's commands; @arg as in the UAPI. */
long vql_disk_create(struct vql_disk_create __user *arg);
long vql_disk_claim(struct vql_disk_claim __user *arg);
long vql_disk_next(struct vql_disk_next __user *arg);

/* ---- remap.c: BPF programs that tell where a request's bytes rest ---- */

int vql_remap_init(void);
/*
 * Ask @disk's policy, or the default one where it has none; the fields of @req that are in are the
 * caller's. False: there is none. An answer is a program's word: target, sectors and verdict are for the
 * caller to check. In any context but an NMI's; does not sleep.
 */
bool vql_remap_ask(struct vql_disk *disk, struct vqlane_remap_req *req);

#endif
