// SPDX-License-Identifier: GPL-2.0-only
/*
 * The VMM's side of a disk: what vhost-vdpa calls for it.
 *
 * vhost-vdpa serialises its calls for one device, but for kick_vq (also from an eventfd's wake-up,
 * with interrupts off), get_status, and the configuration space (vdpa's netlink asks for it too).
 * set_map comes under the VMM's mmap lock at times; so nobody touches user memory under disk->lock.
 */
#include <linux/mm.h>
#include <linux/pci_ids.h>
#include <linux/vhost_iotlb.h>
#include <uapi/linux/vhost_types.h>
#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>
#include "disk/disk.h"

#define WRITEBACK_OFFSET offsetof(struct virtio_blk_config, wce)
static_assert(WRITEBACK_OFFSET < VQL_CONFIG_BYTES);
static_assert(sizeof_field(struct virtio_blk_config, wce) == 1);

static struct vql_queue *queue_of(struct vdpa_device *vdev, u16 index)
{
	return &vql_vdpa_disk(vdev)->queues[index];
}

/* ---- queues ---- */

static int op_set_vq_address(struct vdpa_device *vdev, u16 index, u64 desc, u64 avail, u64 used)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	struct vql_queue *q = queue_of(vdev, index);

	/* virtio 1.3 §2.7 */
	if (!IS_ALIGNED(desc, 16) || !IS_ALIGNED(avail, 2) || !IS_ALIGNED(used, 4))
		return -EINVAL;
	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	q->desc = desc;
	q->avail = avail;
	q->used = used;
	vql_disk_thaw(disk);
	mutex_unlock(&disk->lock);
	return 0;
}

/* vhost-vdpa has checked it: a power of two, get_vq_num_max() at most. */
static void op_set_vq_num(struct vdpa_device *vdev, u16 index, u32 num)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	queue_of(vdev, index)->num = num;
	vql_disk_thaw(disk);
	mutex_unlock(&disk->lock);
}

/*
 * From an eventfd's wake-up, with interrupts off and that eventfd's lock held, or from an ioctl,
 * whenever the VMM likes. The lane serves the queue here and now, or who polls the queue's file is woken.
 * Signalling an eventfd from here would be lost (with a warning), and the bell's lock nests outside an
 * eventfd's.
 */
static void op_kick_vq(struct vdpa_device *vdev, u16 index)
{
	struct vql_queue *q = queue_of(vdev, index);

	if (vql_lane_kick(&q->lane))
		return;
	WRITE_ONCE(q->kicked, true);
	wake_up_poll(&q->kicks, EPOLLIN | EPOLLRDNORM);
}

/*
 * A callback that was changed, while a driver may wait for it: what was signalled a moment ago went to the old one,
 * where nobody looks any more perhaps. One interrupt too many harms no driver.
 */
static void change_bell(struct vdpa_device *vdev, struct vql_bell *bell, struct vdpa_callback *cb)
{
	vql_bell_set(bell, cb);
	if (READ_ONCE(vql_vdpa_disk(vdev)->status) & VIRTIO_CONFIG_S_DRIVER_OK)
		vql_bell_ring(bell);
}

/* At any time, also while the queue runs. */
static void op_set_vq_cb(struct vdpa_device *vdev, u16 index, struct vdpa_callback *cb)
{
	change_bell(vdev, &queue_of(vdev, index)->bell, cb);
}

static void op_set_vq_ready(struct vdpa_device *vdev, u16 index, bool ready)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	struct vql_queue *q = queue_of(vdev, index);

	mutex_lock(&disk->lock);
	if (ready && !q->ready) {
		/* Nobody serves this queue yet, and the others may go on until the holder yields. */
		q->ready = true;
		vql_disk_renew(disk);
	} else if (!ready && q->ready) {
		vql_disk_freeze(disk);
		q->ready = false;
		q->lane.lent = false;
		WRITE_ONCE(q->kicked, false);
		vql_disk_thaw(disk);
	}
	mutex_unlock(&disk->lock);
}

static bool op_get_vq_ready(struct vdpa_device *vdev, u16 index)
{
	return READ_ONCE(queue_of(vdev, index)->ready);
}

static int op_set_vq_state(struct vdpa_device *vdev, u16 index, const struct vdpa_vq_state *state)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	u64 bytes = vql_disk_queue_record_bytes(disk);

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	queue_of(vdev, index)->next_avail = state->split.avail_index;
	/* Nothing is in flight in a queue that begins here. */
	memset(disk->record + index * bytes, 0, bytes);
	queue_of(vdev, index)->lane.dirty = false;
	vql_disk_thaw(disk);
	mutex_unlock(&disk->lock);
	return 0;
}

/*
 * What a holder has taken is known once it has yielded. Of a dirty disk it is not: requests were
 * taken out of order, perhaps, and a daemon has yet to answer them.
 */
static int op_get_vq_state(struct vdpa_device *vdev, u16 index, struct vdpa_vq_state *state)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	int err = 0;

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	if (vql_disk_is_dirty(disk))
		err = -EIO;
	else
		state->split.avail_index = queue_of(vdev, index)->next_avail;
	vql_disk_thaw(disk);
	mutex_unlock(&disk->lock);
	return err;
}

static u32 op_get_vq_align(struct vdpa_device *vdev) { return PAGE_SIZE; }

static u16 op_get_vq_num_max(struct vdpa_device *vdev) { return vql_vdpa_disk(vdev)->queue_size; }

/* ---- the device ---- */

static u32 op_get_device_id(struct vdpa_device *vdev) { return VIRTIO_ID_BLOCK; }

static u32 op_get_vendor_id(struct vdpa_device *vdev) { return PCI_VENDOR_ID_REDHAT_QUMRANET; }

static u64 op_get_device_features(struct vdpa_device *vdev) { return vql_vdpa_disk(vdev)->offered; }

/* Queues may be made ready after DRIVER_OK. The rest vhost-vdpa tells by the ops that are here. */
static u64 op_get_backend_features(const struct vdpa_device *vdev)
{
	return BIT_ULL(VHOST_BACKEND_F_ENABLE_AFTER_DRIVER_OK);
}

/* An early read of the configuration space sets 0; what is needed is judged with FEATURES_OK. */
static int op_set_driver_features(struct vdpa_device *vdev, u64 features)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	int err = 0;

	mutex_lock(&disk->lock);
	if (features & ~disk->offered || disk->status & VIRTIO_CONFIG_S_FEATURES_OK)
		err = -EINVAL;
	else
		disk->features = features;
	mutex_unlock(&disk->lock);
	return err;
}

static u64 op_get_driver_features(struct vdpa_device *vdev)
{
	return READ_ONCE(vql_vdpa_disk(vdev)->features);
}

static u8 op_get_status(struct vdpa_device *vdev) { return READ_ONCE(vql_vdpa_disk(vdev)->status); }

/* virtio 1.3 §2.1, §3.1.1 */
static void op_set_status(struct vdpa_device *vdev, u8 status)
{
	const u64 needed = BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM);
	struct vql_disk *disk = vql_vdpa_disk(vdev);

	mutex_lock(&disk->lock);
	if ((disk->features & needed) != needed)
		status &= ~VIRTIO_CONFIG_S_FEATURES_OK;
	if (!(status & VIRTIO_CONFIG_S_FEATURES_OK))
		status &= ~VIRTIO_CONFIG_S_DRIVER_OK;
	/* The device's own bit. */
	status &= ~VIRTIO_CONFIG_S_NEEDS_RESET;
	status |= disk->status & VIRTIO_CONFIG_S_NEEDS_RESET;
	if (status != disk->status) {
		WRITE_ONCE(disk->status, status);
		vql_disk_renew(disk);
	}
	mutex_unlock(&disk->lock);
}

void vql_vdpa_reset_setup(struct vql_disk *disk)
{
	const struct vdpa_callback none = {};
	u32 i;

	for (i = 0; i < disk->nqueues; i++) {
		struct vql_queue *q = &disk->queues[i];

		vql_bell_set(&q->bell, &none);
		WRITE_ONCE(q->kicked, false);
		WRITE_ONCE(q->ready, false);
		q->next_avail = 0;
		q->num = 0;
		q->desc = 0;
		q->avail = 0;
		q->used = 0;
	}
	vql_bell_set(&disk->config_bell, &none);
	WRITE_ONCE(disk->features, 0);
	WRITE_ONCE(disk->status, 0);
	disk->suspended = false;
	disk->writeback = disk->config[WRITEBACK_OFFSET];
	memset(disk->record, 0, vql_disk_record_bytes(disk));
	disk->dirty = false;
	vql_lanes_reset(disk);
}

/*
 * Comes with each open and close too. The memory stays: it is the VMM's, not the driver's
 * (VHOST_BACKEND_F_IOTLB_PERSIST).
 */
static int op_reset(struct vdpa_device *vdev)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	vql_vdpa_reset_setup(disk);
	vql_disk_thaw(disk);
	if (disk->hidden && !vql_disk_in_use(disk))
		vql_disk_end(disk);
	mutex_unlock(&disk->lock);
	return 0;
}

static int op_suspend(struct vdpa_device *vdev)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	int err = 0;

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	if (vql_disk_is_dirty(disk)) {
		dev_warn_ratelimited(
			&vdev->dev,
			"not suspended: requests in flight and no daemon to end them\n");
		err = -EIO;
	} else {
		disk->suspended = true;
	}
	vql_disk_thaw(disk);
	mutex_unlock(&disk->lock);
	return err;
}

static int op_resume(struct vdpa_device *vdev)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);

	mutex_lock(&disk->lock);
	disk->suspended = false;
	vql_disk_renew(disk);
	vql_lanes_start(disk);
	mutex_unlock(&disk->lock);
	return 0;
}

/* ---- configuration space ---- */

static void op_set_config_cb(struct vdpa_device *vdev, struct vdpa_callback *cb)
{
	change_bell(vdev, &vql_vdpa_disk(vdev)->config_bell, cb);
}

static size_t op_get_config_size(struct vdpa_device *vdev) { return VQL_CONFIG_BYTES; }

static void op_get_config(struct vdpa_device *vdev, unsigned int offset, void *buf,
			  unsigned int len)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	u8 config[VQL_CONFIG_BYTES];

	memset(buf, 0, len);
	if (offset >= sizeof(config))
		return;
	mutex_lock(&disk->lock);
	memcpy(config, disk->config, sizeof(config));
	config[WRITEBACK_OFFSET] = disk->writeback;
	mutex_unlock(&disk->lock);
	memcpy(buf, config + offset, min_t(size_t, len, sizeof(config) - offset));
}

/* The one field of a driver's own: writeback (virtio 1.3 §5.2.5). The others are read only. */
static void op_set_config(struct vdpa_device *vdev, unsigned int offset, const void *buf,
			  unsigned int len)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	bool writeback;

	if (offset > WRITEBACK_OFFSET || len <= WRITEBACK_OFFSET - offset)
		return;
	writeback = ((const u8 *)buf)[WRITEBACK_OFFSET - offset];
	mutex_lock(&disk->lock);
	if (disk->features & BIT_ULL(VIRTIO_BLK_F_CONFIG_WCE) && writeback != disk->writeback) {
		/* What is under way ends under the old rule. */
		vql_disk_freeze(disk);
		disk->writeback = writeback;
		vql_disk_thaw(disk);
	}
	mutex_unlock(&disk->lock);
}

static u32 op_get_generation(struct vdpa_device *vdev)
{
	return READ_ONCE(vql_vdpa_disk(vdev)->config_generation);
}

/* ---- memory ---- */

/* Under disk->lock, frozen. @ms: a reference, or NULL. */
static void replace_mspace(struct vql_disk *disk, struct vql_mspace *ms)
{
	struct vql_mspace *old = disk->ms;

	disk->ms = ms;
	if (old) {
		vql_mspace_revoke(old);
		vql_mspace_put(old);
	}
}

/*
 * Comes with any map, also under running queues. At the end of a batch vhost-vdpa ignores what this
 * returns: so after a failure the disk has no memory and tells the driver that it is of no use.
 */
static int op_set_map(struct vdpa_device *vdev, unsigned int asid, struct vhost_iotlb *iotlb)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);
	struct vql_mspace *ms = NULL;
	int err = 0;

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	if (vhost_iotlb_itree_first(iotlb, 0, U64_MAX))
		ms = vql_mspace_from_iotlb(iotlb, disk->ms);
	if (IS_ERR(ms)) {
		err = PTR_ERR(ms);
		ms = NULL;
	}
	replace_mspace(disk, ms);
	vql_disk_thaw(disk);
	if (err) {
		dev_err_ratelimited(
			&vdev->dev,
			"stops until it is mapped anew and reset: bad memory map (%d)\n", err);
		vql_disk_needs_reset(disk);
	}
	mutex_unlock(&disk->lock);
	return err;
}

/* The VMM closes the device; its reset came before. */
static int op_reset_map(struct vdpa_device *vdev, unsigned int asid)
{
	struct vql_disk *disk = vql_vdpa_disk(vdev);

	mutex_lock(&disk->lock);
	vql_disk_freeze(disk);
	replace_mspace(disk, NULL);
	vql_disk_thaw(disk);
	if (disk->hidden && !vql_disk_in_use(disk))
		vql_disk_end(disk);
	mutex_unlock(&disk->lock);
	return 0;
}

const struct vdpa_config_ops vql_vdpa_ops = {
	.set_vq_address = op_set_vq_address,
	.set_vq_num = op_set_vq_num,
	.kick_vq = op_kick_vq,
	.set_vq_cb = op_set_vq_cb,
	.set_vq_ready = op_set_vq_ready,
	.get_vq_ready = op_get_vq_ready,
	.set_vq_state = op_set_vq_state,
	.get_vq_state = op_get_vq_state,
	.get_vq_align = op_get_vq_align,
	.get_vq_num_max = op_get_vq_num_max,
	.get_device_id = op_get_device_id,
	.get_vendor_id = op_get_vendor_id,
	.get_device_features = op_get_device_features,
	.get_backend_features = op_get_backend_features,
	.set_driver_features = op_set_driver_features,
	.get_driver_features = op_get_driver_features,
	.get_status = op_get_status,
	.set_status = op_set_status,
	.reset = op_reset,
	.suspend = op_suspend,
	.resume = op_resume,
	.set_config_cb = op_set_config_cb,
	.get_config_size = op_get_config_size,
	.get_config = op_get_config,
	.set_config = op_set_config,
	.get_generation = op_get_generation,
	.set_map = op_set_map,
	.reset_map = op_reset_map,
	.free = vql_disk_free,
};
