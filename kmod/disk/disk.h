/* SPDX-License-Identifier: GPL-2.0-only */
/* What disk.c (life and lease), claim.c (the daemon's side) and vdpa.c (the VMM's side) share. */
#ifndef _VQLANE_KMOD_DISK_H
#define _VQLANE_KMOD_DISK_H

#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/vdpa.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <uapi/linux/virtio_blk.h>
#include "lane/lane.h"
#include "mem/mem.h"
#include "nvme/nvme.h"

/*
 * How the guest is interrupted. The lock is held over the call: when vql_bell_set() returns, nobody
 * uses what was there before. That nests it outside an eventfd's lock; so it must not be taken in
 * kick_vq(), which is called with one held. A controller's interrupt takes it.
 *
 * Never by cb.trigger, which is quicker: vhost-vdpa lets go of that eventfd before it tells us of the
 * next one, may tell of it for another queue (it reads the index from the VMM's memory twice), and does
 * not set it at all for the configuration's. The callback finds the eventfd where vhost-vdpa has it now.
 */
struct vql_bell {
	spinlock_t lock;
	struct vdpa_callback cb;
};

struct vql_queue {
	struct vql_bell bell;
	wait_queue_head_t kicks; /* of the queue's files */
	bool kicked;             /* set by kick_vq() without a lock */
	/* As the driver set it up; under disk->lock. */
	bool ready;
	u16 next_avail; /* true while nobody has the lease, and the disk is not dirty */
	u32 num;
	u64 desc, avail, used;
	struct vql_lane lane;
};

/* A process's claim on a disk: the file from VQL_IOC_DISK_CREATE or VQL_IOC_DISK_CLAIM. */
struct vql_claim {
	struct vql_disk *disk;         /* a reference */
	struct address_space *mapping; /* this file's alone */
	u64 seen;                      /* disk->changes as last told; under disk->lock */
	bool revoked;                  /* under disk->lock */
	unsigned long generation; /* of mappings of the record that live; under vql_attach_lock */
};

struct vql_disk {
	struct vdpa_device vdev; /* first; its reference count is the disk's */
	struct list_head list;   /* under disks_lock (disk.c) */
	char name[VQL_NAME_BYTES];
	u32 nqueues;
	u32 queue_size;
	u64 offered; /* features */
	struct vql_queue *queues;
	void *record;                          /* what is in flight; vmalloc_user() */
	struct vqlane_remap_ops __rcu *policy; /* remap.c; under disks_lock */

	struct mutex lock; /* all below */

	/* The driver's side. */
	u64 features;
	u8 status; /* written under the lock, read also without */
	bool suspended;
	bool writeback;
	u8 config[VQL_CONFIG_BYTES];
	u32 config_generation;
	struct vql_bell config_bell;
	struct vql_mspace *ms; /* NULL: no memory is known */

	/* The kernel lane (lane.h). */
	struct vql_lane_config *lane_config; /* NULL: no queue can be lent */
	struct vql_lane_mem *lane_mem;       /* @ms as running lanes see it; NULL: none runs */
	unsigned long warned;                /* bit 0: of a remap program's answer */
	struct work_struct lane_work;
	struct delayed_work lane_retry; /* with a reference on the disk while it is queued */

	/* The daemon's side. */
	struct vql_claim *claim;
	u64 epoch;              /* of the set-up */
	u64 changes;            /* of what VQL_IOC_DISK_STATE tells; read also without the lock */
	bool leased;            /* @claim serves the queues */
	bool recalled;          /* ... and was asked to stop */
	bool dirty;             /* the last lease ended without a yield */
	bool unfenced;          /* ... and queue pairs of its holder may still know the memory */
	unsigned int frozen;    /* nobody may take the lease: something is being changed */
	wait_queue_head_t wait; /* a claim's poll(), the end of a lease, the disk's end */

	/*
	 * Its end, in this order: its name finds nothing any more (written under disks_lock as well);
	 * the VMM has let go, @remove_work is under way; nothing answers any more.
	 */
	bool hidden;
	bool ending;
	bool gone;
	struct work_struct remove_work;
};

static inline struct vql_disk *vql_vdpa_disk(struct vdpa_device *vdev)
{
	return container_of(vdev, struct vql_disk, vdev);
}

/* The capacity that its driver sees. Under disk->lock. */
static inline u64 vql_disk_sectors(const struct vql_disk *disk)
{
	const struct virtio_blk_config *config = (const void *)disk->config;

	return le64_to_cpu((__force __le64)config->capacity);
}

static inline struct vql_queue *vql_lane_queue(struct vql_lane *lane)
{
	return &lane->disk->queues[lane->index];
}

/* ---- disk.c ---- */

void vql_bell_set(struct vql_bell *bell, const struct vdpa_callback *cb);
void vql_bell_ring(struct vql_bell *bell);
/*
 * Whoever served the queues is gone, perhaps between publishing an answer and telling of it: and who comes
 * next finds nothing there to tell of. One interrupt too many harms no driver.
 */
void vql_disk_ring_all(struct vql_disk *disk);

struct vql_disk *vql_disk_get(struct vql_disk *disk);
void vql_disk_put(struct vql_disk *disk);

u64 vql_disk_queue_record_bytes(const struct vql_disk *disk);
u64 vql_disk_record_bytes(const struct vql_disk *disk);

/* The following under disk->lock. */

/* May a daemon, or the kernel lane, serve the queues? */
bool vql_disk_runnable(const struct vql_disk *disk);
/* VQL_IOC_DISK_STATE tells something new: wake who polls. */
void vql_disk_changed(struct vql_disk *disk);
/* Are requests in flight that only a daemon can finish, by the record? */
bool vql_disk_is_dirty(const struct vql_disk *disk);
/* drain_ms, the parameter. */
unsigned int vql_disk_drain_ms(void);
/*
 * From freeze to thaw nobody serves the queues, and none of an earlier holder's commands can reach the
 * memory. Lanes stop, and go on after it. A holder is asked to yield, and after drain_ms the lease is revoked. Lets go of the lock while
 * it waits; several freezes may overlap.
 */
void vql_disk_freeze(struct vql_disk *disk);
void vql_disk_thaw(struct vql_disk *disk);
/* The set-up has grown: the holder is to yield and acquire anew, but nobody needs to wait for it. */
void vql_disk_renew(struct vql_disk *disk);
/* Delete what an earlier holder's queue pairs could still do. Needs frozen; lets go of the lock. */
void vql_disk_fence(struct vql_disk *disk);
/* DEVICE_NEEDS_RESET (virtio 1.3 §2.1.2). */
void vql_disk_needs_reset(struct vql_disk *disk);
/* Is a VMM using it? One that has merely opened it is not seen. */
bool vql_disk_in_use(const struct vql_disk *disk);
/* End it. What a VMM may still do to it is waited for. */
void vql_disk_end(struct vql_disk *disk);

bool vql_disk_name_is_valid(const char name[VQL_NAME_BYTES]);
/* -ENOENT: no disk @name (a new policy needs one that is not being removed). -EEXIST: its policy is not @old. */
int vql_disk_replace_policy(const char *name, struct vqlane_remap_ops *old,
			    struct vqlane_remap_ops *new);

/* VQL_IOC_DISK_REMOVE of a claim; without disk->lock. */
long vql_disk_remove(struct vql_disk *disk, unsigned long flags);

/* ---- claim.c ---- */

/* A claim on @disk in a new file; -EBUSY when there is one. Its fd is the caller's to install. */
struct file *vql_claim_open(struct vql_disk *disk);
/* Zap the claim's mappings of the record, for good. Under vql_attach_lock. */
void vql_claim_zap(struct vql_claim *claim);

/* ---- vdpa.c ---- */

extern const struct vdpa_config_ops vql_vdpa_ops;
/* What a driver finds after a reset. Under disk->lock, frozen. */
void vql_vdpa_reset_setup(struct vql_disk *disk);
/* The device's last reference is gone (disk.c). */
void vql_disk_free(struct vdpa_device *vdev);

/* ---- disk.c, vdpa.c: vDPA virtio-blk devices ---- */

int vql_disk_init(void);
void vql_disk_exit(void);
/* The control device's commands; @arg as in the UAPI. */
long vql_disk_create(struct vql_disk_create __user *arg);
long vql_disk_claim(struct vql_disk_claim __user *arg);
long vql_disk_next(struct vql_disk_next __user *arg);

#endif
