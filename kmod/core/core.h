/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all rooms need. Each room has a header of what others may ask of it, and keeps its structures to itself: core
 * (here), nvme, mem, disk, api, lane. Calls go from the later to the earlier; kmod/calls.known has those that do not yet.
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
#ifndef VQL_CORE_H
#define VQL_CORE_H

#include <linux/device.h>
#include <linux/types.h>
#include <uapi/linux/vqlane.h>
#include <vqlane/limits.h>

struct vql_ctrl;
struct vql_disk;
struct vql_qpair;
struct vql_mspace;

extern struct device *vql_root; /* parent of the disks' vDPA devices */

/*
 * The one way an ioctl argument comes in: copies min(size, known) bytes after checking that the
 * caller's @size field (the first __u32 of each struct) is exactly @bytes. Returns 0, -EFAULT,
 * -E2BIG (larger: a newer daemon) or -EINVAL (smaller).
 */
int vql_copy_in(void *to, const void __user *from, size_t bytes);

#endif
