// SPDX-License-Identifier: GPL-2.0-only
/*
 * Disks: their life, and the lease under which a daemon serves one.
 *
 * A disk is a vDPA device that lives in the module until it is removed. Two sides meet in it: the VMM,
 * through vhost-vdpa (vdpa.c), and the daemon, through a claim (claim.c). The lease keeps them apart:
 * the daemon touches rings and memory only while it has the lease, the VMM's side changes what is
 * below them only while nobody has it (vql_disk_freeze).
 */
#include <linux/device.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/log2.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <uapi/linux/virtio_config.h>
#include "core/compat.h"
#include "disk/disk.h"

static unsigned int drain_ms = 10000;
module_param(drain_ms, uint, 0644);
MODULE_PARM_DESC(
	drain_ms,
	"time a daemon has to let go of a guest's memory, ms (default 10000, at most 30000)");

/* All disks that are not gone, by name. Outermost: held while a device is registered. */
static DEFINE_MUTEX(disks_lock);
static LIST_HEAD(disks);
static u32 ndisks;

/* Removal waits for a VMM that has just opened the device. */
static struct workqueue_struct *remove_wq;

/* ---- interrupting the guest ---- */

void vql_bell_set(struct vql_bell *bell, const struct vdpa_callback *cb)
{
	spin_lock_irq(&bell->lock);
	bell->cb = (struct vdpa_callback){.callback = cb->callback, .private = cb->private};
	spin_unlock_irq(&bell->lock);
}

void vql_bell_ring(struct vql_bell *bell)
{
	unsigned long flags;

	spin_lock_irqsave(&bell->lock, flags);
	if (bell->cb.callback)
		bell->cb.callback(bell->cb.private);
	spin_unlock_irqrestore(&bell->lock, flags);
}

void vql_disk_ring_all(struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++)
		vql_bell_ring(&disk->queues[i].bell);
}

/* ---- the lease ---- */

bool vql_disk_runnable(const struct vql_disk *disk)
{
	u32 i;

	if (!(disk->status & VIRTIO_CONFIG_S_DRIVER_OK) || disk->status & VIRTIO_CONFIG_S_FAILED ||
	    !disk->ms || disk->suspended || disk->frozen || disk->gone)
		return false;
	for (i = 0; i < disk->nqueues; i++)
		if (disk->queues[i].ready)
			return true;
	return false;
}

bool vql_disk_is_dirty(const struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++)
		if (disk->queues[i].lane.dirty)
			return true;
	return disk->dirty;
}

/* Bounded, since a VMM waits for it under its mmap lock, and others for that (see also DELETE_S in admin.c). */
unsigned int vql_disk_drain_ms(void) { return min(READ_ONCE(drain_ms), 30000u); }

void vql_disk_changed(struct vql_disk *disk)
{
	WRITE_ONCE(disk->changes, disk->changes + 1);
	wake_up_all(&disk->wait);
}

void vql_disk_renew(struct vql_disk *disk)
{
	disk->epoch++;
	disk->recalled = disk->leased;
	vql_disk_changed(disk);
}

/*
 * The holder did not yield in time: it may hang, or a command of its may. Between its last touch of
 * the record and its last touch of the rings there must be no gap: a batch that the guest sees but the
 * record does not would be done again, the reverse would be lost. Both mappings go under one hold of
 * vql_attach_lock, which their page faults take: a thread that touches the record after it was zapped
 * stands still until the rings are zapped as well. So the record first: what was published before is
 * in it, or can be settled with it (last_batch_head), as after a death between two stores.
 */
static void revoke_lease(struct vql_disk *disk)
{
	struct vql_claim *claim = disk->claim;

	dev_warn(&disk->vdev.dev, "daemon not done in %u ms: its hold on the guest is revoked\n",
		 vql_disk_drain_ms());
	mutex_lock(&vql_attach_lock);
	vql_claim_zap(claim);
	if (disk->ms)
		vql_mspace_close_files(disk->ms);
	mutex_unlock(&vql_attach_lock);
	claim->revoked = true;
	disk->leased = false;
	disk->recalled = false;
	disk->dirty = true;
	disk->unfenced = true;
	vql_disk_ring_all(disk);
}

void vql_disk_fence(struct vql_disk *disk)
{
	struct vql_mspace *ms = disk->ms;

	/* Nobody takes the lease while frozen, so nothing is attached anew. */
	if (ms) {
		vql_mspace_get(ms);
		mutex_unlock(&disk->lock);
		vql_mspace_fence(ms);
		vql_mspace_put(ms);
		mutex_lock(&disk->lock);
	}
	disk->unfenced = false;
}

void vql_disk_freeze(struct vql_disk *disk)
{
	long left = msecs_to_jiffies(vql_disk_drain_ms());

	lockdep_assert_held(&disk->lock);
	disk->frozen++;
	vql_lanes_ask_stop(disk);
	if (disk->leased) {
		disk->recalled = true;
		vql_disk_changed(disk);
	}
	while (disk->leased && left) {
		mutex_unlock(&disk->lock);
		left = wait_event_idle_timeout(disk->wait, !READ_ONCE(disk->leased), left);
		mutex_lock(&disk->lock);
	}
	if (disk->leased)
		revoke_lease(disk);
	/* Lanes have had the same time. */
	vql_lanes_wait_stopped(disk, left);
	if (disk->unfenced)
		vql_disk_fence(disk);
}

void vql_disk_thaw(struct vql_disk *disk)
{
	disk->frozen--;
	disk->epoch++;
	vql_disk_changed(disk);
	vql_lanes_start(disk);
}

void vql_disk_needs_reset(struct vql_disk *disk)
{
	WRITE_ONCE(disk->status, disk->status | VIRTIO_CONFIG_S_NEEDS_RESET);
	vql_disk_changed(disk);
	vql_bell_ring(&disk->config_bell);
}

/* ---- life ---- */

struct vql_disk *vql_disk_get(struct vql_disk *disk)
{
	get_device(&disk->vdev.dev);
	return disk;
}

void vql_disk_put(struct vql_disk *disk) { put_device(&disk->vdev.dev); }

u64 vql_disk_queue_record_bytes(const struct vql_disk *disk)
{
	return VQL_INFLIGHT_BYTES(disk->queue_size);
}

u64 vql_disk_record_bytes(const struct vql_disk *disk)
{
	return PAGE_ALIGN(disk->nqueues * vql_disk_queue_record_bytes(disk));
}

static struct vql_disk *disk_find(const char *name)
{
	struct vql_disk *disk;

	list_for_each_entry(disk, &disks, list) if (!strcmp(disk->name, name)) return disk;
	return NULL;
}

static void disk_list(struct vql_disk *disk)
{
	struct vql_disk *at;

	list_for_each_entry(at, &disks, list) if (strcmp(at->name, disk->name) > 0) break;
	list_add_tail(&disk->list, &at->list);
	ndisks++;
}

int vql_disk_replace_policy(const char *name, struct vqlane_remap_ops *old,
			    struct vqlane_remap_ops *new)
{
	struct vql_disk *disk;
	int err = 0;

	mutex_lock(&disks_lock);
	disk = disk_find(name);
	if (!disk || (disk->hidden && new))
		err = -ENOENT;
	else if (rcu_access_pointer(disk->policy) != old)
		err = -EEXIST;
	else
		rcu_assign_pointer(disk->policy, new);
	mutex_unlock(&disks_lock);
	return err;
}

bool vql_disk_in_use(const struct vql_disk *disk) { return disk->status || disk->ms; }

/*
 * vhost-vdpa's remove() waits until the device is closed. Taking the driver off first keeps that wait
 * out of vdpa's global lock. Its close resets the disk and drops its memory.
 */
static void disk_remove(struct work_struct *work)
{
	struct vql_disk *disk = container_of(work, struct vql_disk, remove_work);
	struct vql_lane_config *config;

	device_release_driver(&disk->vdev.dev);
	mutex_lock(&disks_lock);
	list_del(&disk->list);
	ndisks--;
	/* From here on who unregisters it does not find the disk. */
	RCU_INIT_POINTER(disk->policy, NULL);
	vql_disk_get(disk);
	vdpa_unregister_device(&disk->vdev);
	mutex_unlock(&disks_lock);

	mutex_lock(&disk->lock);
	WARN_ON(disk->leased || disk->ms);
	config = disk->lane_config;
	disk->lane_config = NULL;
	disk->gone = true;
	vql_disk_changed(disk);
	mutex_unlock(&disk->lock);
	vql_lane_config_free(config);
	vql_disk_put(disk);
}

void vql_disk_end(struct vql_disk *disk)
{
	lockdep_assert_held(&disk->lock);
	if (!disk->ending)
		queue_work(remove_wq, &disk->remove_work);
	disk->ending = true;
}

long vql_disk_remove(struct vql_disk *disk, unsigned long flags)
{
	bool in_use;

	if (flags & ~(unsigned long)VQL_REMOVE_LATER)
		return -EINVAL;
	mutex_lock(&disks_lock);
	mutex_lock(&disk->lock);
	in_use = vql_disk_in_use(disk);
	if (!in_use || flags & VQL_REMOVE_LATER)
		disk->hidden = true;
	if (!in_use)
		vql_disk_end(disk);
	mutex_unlock(&disk->lock);
	mutex_unlock(&disks_lock);
	if (in_use)
		return flags & VQL_REMOVE_LATER ? 0 : -EBUSY;
	/* Done in no time, unless a VMM has opened it a moment ago: then it is as with LATER. */
	wait_event_idle_timeout(disk->wait, READ_ONCE(disk->gone), HZ);
	return 0;
}

/* The device's last reference, which may be another's than ours (vhost-vdpa's, sysfs'). */
void vql_disk_free(struct vdpa_device *vdev)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);

	vfree(disk->record);
	kvfree(disk->queues);
	mutex_destroy(&disk->lock);
	/*
	 * Last of all, since it lets the module go. What is left of this function is over before its
	 * text is freed, which takes an RCU grace period.
	 */
	module_put(THIS_MODULE);
}

bool vql_disk_name_is_valid(const char name[VQL_NAME_BYTES])
{
	size_t len = strnlen(name, VQL_NAME_BYTES), i;

	if (!len || len == VQL_NAME_BYTES || memchr_inv(name + len, 0, VQL_NAME_BYTES - len))
		return false;
	for (i = 0; i < len; i++)
		if (!isalnum(name[i]) && !strchr("_.-", name[i]))
			return false;
	return true;
}

static int validate_create(const struct vql_disk_create *create)
{
	if (create->flags || create->reserved[0] || create->reserved[1])
		return -EINVAL;
	if (!vql_disk_name_is_valid(create->name) || create->features & ~VQL_DISK_FEATURES)
		return -EINVAL;
	if (!create->queues || create->queues > VQL_MAX_QUEUES)
		return -EINVAL;
	if (create->queue_size < VQL_MIN_QUEUE_SIZE || create->queue_size > VQL_MAX_QUEUE_SIZE ||
	    !is_power_of_2(create->queue_size))
		return -EINVAL;
	return 0;
}

static int disk_init(struct vql_disk *disk, const struct vql_disk_create *create)
{
	u32 i;

	strscpy(disk->name, create->name, sizeof(disk->name));
	disk->nqueues = create->queues;
	disk->queue_size = create->queue_size;
	disk->offered =
		create->features | BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM);
	memcpy(disk->config, create->config, sizeof(disk->config));
	mutex_init(&disk->lock);
	spin_lock_init(&disk->config_bell.lock);
	init_waitqueue_head(&disk->wait);
	INIT_WORK(&disk->remove_work, disk_remove);
	INIT_LIST_HEAD(&disk->list);
	disk->queues = kvcalloc(disk->nqueues, sizeof(*disk->queues), GFP_KERNEL_ACCOUNT);
	disk->record = vmalloc_user(vql_disk_record_bytes(disk));
	if (!disk->queues || !disk->record)
		return -ENOMEM;
	for (i = 0; i < disk->nqueues; i++) {
		vql_lane_setup(&disk->queues[i].lane, disk, i);
		spin_lock_init(&disk->queues[i].bell.lock);
		init_waitqueue_head(&disk->queues[i].kicks);
	}
	vql_vdpa_reset_setup(disk);
	return 0;
}

/* A disk that nobody knows yet. */
static struct vql_disk *disk_alloc(const struct vql_disk_create *create)
{
	char vdpa_name[sizeof("vqlane-") + VQL_NAME_BYTES];
	struct vql_disk *disk;
	int err;

	snprintf(vdpa_name, sizeof(vdpa_name), "vqlane-%s", create->name);
	disk = vql_vdpa_alloc(struct vql_disk, vdev, vql_root, &vql_vdpa_ops, vdpa_name);
	if (IS_ERR(disk))
		return disk;
	__module_get(THIS_MODULE);
	err = disk_init(disk, create);
	/*
	 * Its addresses are a guest's, which virtio_vdpa would not translate: a driver of this host
	 * would wait for its answers for ever.
	 */
	if (!err)
		err = vql_vdpa_force_driver(&disk->vdev, "vhost_vdpa");
	if (err) {
		vql_disk_put(disk);
		return ERR_PTR(err);
	}
	vql_vdpa_set_dma_dev(&disk->vdev, vql_root);
	return disk;
}

/* With disks_lock. */
static struct file *disk_make(const struct vql_disk_create *create)
{
	struct vql_disk *disk;
	struct file *claim;
	int err;

	if (disk_find(create->name))
		return ERR_PTR(-EEXIST);
	if (ndisks >= VQL_MAX_DISKS)
		return ERR_PTR(-ENOSPC);
	disk = disk_alloc(create);
	if (IS_ERR(disk))
		return ERR_CAST(disk);
	claim = vql_claim_open(disk);
	if (IS_ERR(claim)) {
		vql_disk_put(disk);
		return claim;
	}
	err = vdpa_register_device(&disk->vdev, disk->nqueues);
	if (err) {
		fput(claim);
		vql_disk_put(disk);
		return ERR_PTR(err);
	}
	disk_list(disk);
	return claim;
}

/* ---- the control device's commands ---- */

long vql_disk_create(struct vql_disk_create __user *arg)
{
	struct vql_disk_create create;
	struct file *claim;
	int fd, err;

	err = vql_copy_in(&create, arg, sizeof(create));
	if (!err)
		err = validate_create(&create);
	if (err)
		return err;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	mutex_lock(&disks_lock);
	claim = disk_make(&create);
	mutex_unlock(&disks_lock);
	if (IS_ERR(claim)) {
		put_unused_fd(fd);
		return PTR_ERR(claim);
	}
	fd_install(fd, claim);
	return fd;
}

static struct file *claim_by_name(struct vql_disk_claim *arg)
{
	struct vql_disk *disk;
	struct file *claim;

	mutex_lock(&disks_lock);
	disk = disk_find(arg->name);
	if (disk && disk->hidden)
		disk = NULL;
	if (disk)
		vql_disk_get(disk);
	mutex_unlock(&disks_lock);
	if (!disk)
		return ERR_PTR(-ENOENT);
	claim = vql_claim_open(disk);
	if (!IS_ERR(claim)) {
		mutex_lock(&disk->lock);
		arg->features = disk->offered & VQL_DISK_FEATURES;
		arg->queues = disk->nqueues;
		arg->queue_size = disk->queue_size;
		memcpy(arg->config, disk->config, sizeof(arg->config));
		mutex_unlock(&disk->lock);
	}
	vql_disk_put(disk);
	return claim;
}

long vql_disk_claim(struct vql_disk_claim __user *arg)
{
	struct vql_disk_claim claim;
	struct file *file;
	int fd, err;

	err = vql_copy_in(&claim, arg, sizeof(claim));
	if (err)
		return err;
	if (claim.flags || claim.reserved[0] || claim.reserved[1] ||
	    !vql_disk_name_is_valid(claim.name))
		return -EINVAL;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	file = claim_by_name(&claim);
	if (IS_ERR(file)) {
		err = PTR_ERR(file);
		goto err_fd;
	}
	if (copy_to_user(arg, &claim, sizeof(claim))) {
		err = -EFAULT;
		fput(file);
		goto err_fd;
	}
	fd_install(fd, file);
	return fd;

err_fd:
	put_unused_fd(fd);
	return err;
}

long vql_disk_next(struct vql_disk_next __user *arg)
{
	struct vql_disk *disk, *found = NULL;
	struct vql_disk_next next;
	int err;

	err = vql_copy_in(&next, arg, sizeof(next));
	if (err)
		return err;
	if (next.name[0] && !vql_disk_name_is_valid(next.name))
		return -EINVAL;
	mutex_lock(&disks_lock);
	list_for_each_entry(disk, &disks, list)
	{
		if (disk->hidden || strcmp(disk->name, next.name) <= 0)
			continue;
		found = disk;
		break;
	}
	if (found) {
		next.claimed = !!READ_ONCE(found->claim);
		memcpy(next.name, found->name, sizeof(next.name));
		strscpy_pad(next.vdpa, dev_name(&found->vdev.dev), sizeof(next.vdpa));
	}
	mutex_unlock(&disks_lock);
	if (!found)
		return -ENOENT;
	return copy_to_user(arg, &next, sizeof(next)) ? -EFAULT : 0;
}

int vql_disk_init(void)
{
	remove_wq = alloc_workqueue("vqlane_remove", WQ_UNBOUND, 0);
	return remove_wq ? 0 : -ENOMEM;
}

/* Each disk holds a reference on the module, so there is none left; but a removal may be at its end. */
void vql_disk_exit(void) { destroy_workqueue(remove_wq); }
