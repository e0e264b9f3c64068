// SPDX-License-Identifier: GPL-2.0-only
/*
 * A queue's way into the kernel lane and back: lent, started, stopped, and given back.
 *
 *   OFF → RUNS   lane_start(), under disk->lock, with the disk not frozen
 *   RUNS → STOPS a freeze or VQL_IOC_DISK_TAKE asks; or the lane itself finds that it cannot go on
 *                (lane->why)
 *   STOPS → OFF  lane_off(), under disk->lock, when nothing is under way
 *
 * A lane that stops by itself is put OFF by its disk's vql_lane_work(), and then is the daemon's: the module
 * says so by poll() on the claim. Where nothing was lost the daemon simply goes on at next_avail. What
 * was lost is written into the in-flight record, and the daemon finishes it as it finishes what a dead
 * daemon has left.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/slab.h>
#include <linux/vmalloc.h>
#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_config.h>
#include <uapi/linux/virtio_ring.h>
#include "disk/disk.h"
#include "lane/trace.h"

/* ---- starting; all under disk->lock ---- */

static void lane_free(struct vql_lane *lane)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(lane->maps); i++) {
		vunmap(lane->maps[i]);
		lane->maps[i] = NULL;
	}
	kvfree(lane->ios);
	kvfree(lane->answered);
	kfree(lane->dma);
	kvfree(lane->scratch);
	lane->ios = NULL;
	lane->answered = NULL;
	lane->dma = NULL;
	lane->scratch = NULL;
}

static int lane_alloc(struct vql_lane *lane, struct vql_lane_mem *mem, u32 num)
{
	u32 i, kind;

	lane->ios = kvcalloc(num, sizeof(*lane->ios), GFP_KERNEL);
	lane->answered = kvcalloc(num, sizeof(*lane->answered), GFP_KERNEL);
	lane->dma = kcalloc(mem->nviews, sizeof(*lane->dma), GFP_KERNEL);
	lane->scratch = kvmalloc(sizeof(*lane->scratch), GFP_KERNEL);
	if (!lane->ios || !lane->answered || !lane->dma || !lane->scratch)
		return -ENOMEM;
	for (i = 0; i < mem->nviews; i++) {
		for (kind = 0; kind < 2; kind++) {
			lane->dma[i].mem[kind].region = mem->views[i].dma[kind];
			lane->dma[i].mem[kind].nregions = mem->views[i].ndma[kind];
		}
		lane->dma[i].qpair = mem->views[i].qpair;
	}
	return 0;
}

static struct vql_blk_disk blk_of(const struct vql_disk *disk)
{
	const struct virtio_blk_config *config = (const void *)disk->config;
	struct vql_blk_disk blk = {
		.sectors = vql_disk_sectors(disk),
		.block_bytes = le32_to_cpu((__force __le32)config->blk_size) == 4096 ? 4096 : 512,
		.read_only = disk->offered & BIT_ULL(VIRTIO_BLK_F_RO),
		.discard = disk->features & BIT_ULL(VIRTIO_BLK_F_DISCARD),
		.unmap = disk->config[offsetof(struct virtio_blk_config, write_zeroes_may_unmap)],
		.write_zeroes = disk->features & BIT_ULL(VIRTIO_BLK_F_WRITE_ZEROES),
	};

	memcpy(blk.id, disk->lane_config->id, sizeof(blk.id));
	return blk;
}

/* As blk_durable() in the daemon. */
static bool durable(const struct vql_disk *disk)
{
	if (disk->features & BIT_ULL(VIRTIO_BLK_F_CONFIG_WCE))
		return !disk->writeback;
	return !(disk->features & BIT_ULL(VIRTIO_BLK_F_FLUSH)); /* it could not ask for a flush */
}

static int ring_setup(struct vql_lane *lane, const struct vql_queue *q)
{
	struct vql_lane_mem *mem = lane->disk->lane_mem;
	struct vql_ring *ring = &lane->ring;

	if (!vql_queue_size_valid(q->num) || q->num > lane->disk->queue_size)
		return -EINVAL;
	*ring = (struct vql_ring){
		.desc = vql_lane_mem_ring(mem, q->desc, vql_desc_bytes(q->num), false,
					  &lane->maps[0]),
		.avail = vql_lane_mem_ring(mem, q->avail, vql_avail_bytes(q->num), false,
					   &lane->maps[1]),
		.used = vql_lane_mem_ring(mem, q->used, vql_used_bytes(q->num), true,
					  &lane->maps[2]),
		.num = (u16)q->num,
		.next_avail = q->next_avail,
		.event_idx = lane->disk->features & BIT_ULL(VIRTIO_RING_F_EVENT_IDX),
		.indirect = lane->disk->features & BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC),
	};
	if (!ring->desc || !ring->avail || !ring->used)
		return -EFAULT;
	ring->next_used = vql_load_acquire(&ring->used->idx);
	ring->signalled = ring->next_used;
	return 0;
}

static int lane_start(struct vql_lane *lane, const struct vql_queue *q)
{
	struct vql_disk *disk = lane->disk;
	int err = ring_setup(lane, q);

	if (!err)
		err = lane_alloc(lane, disk->lane_mem, q->num);
	if (err) {
		lane_free(lane);
		return err;
	}
	lane->config = disk->lane_config;
	lane->durable = durable(disk);

	spin_lock_irq(&lane->lock);
	lane->mem = (struct vql_mem){
		.region = disk->lane_mem->regions,
		.nregions = disk->lane_mem->nregions,
	};
	lane->blk = blk_of(disk);
	lane->why = VQL_RETURNED_NOT;
	lane->ring_error = 0;
	lane->in_flight = 0;
	lane->lost = 0;
	lane->nanswered = 0;
	lane->signal_due = false;
	lane->waited_for = VQL_LANE_NOBODY;
	lane->busy = false;
	lane->recent = 0;
	lane->window_end = jiffies; /* is over at once */
	WRITE_ONCE(lane->state, VQL_LANE_RUNS);
	spin_unlock_irq(&lane->lock);
	/* What is in the ring already, and the request for a kick. */
	vql_lane_wake(lane);
	/*
	 * Whether the last publication of whoever served the queue before was signalled, nobody here knows. After the
	 * used index was read: an event index that the driver sets from now on is compared with a publication of ours,
	 * or the driver sees what it missed when it looks again, as it has to (virtio 1.3 §2.7.10).
	 */
	vql_bell_ring(&vql_lane_queue(lane)->bell);
	trace_vqlane_lane(lane->config->slot, (u16)lane->index, VQL_LANE_POLL, VQL_LANE_KERNEL,
			  "lent");
	return 0;
}

static const char *returned_text(enum vql_queue_returned why)
{
	switch (why) {
	case VQL_RETURNED_NOT: return "broken";
	case VQL_RETURNED_TAKEN: return "taken";
	case VQL_RETURNED_VERDICT: return "verdict";
	case VQL_RETURNED_SHAPE: return "shape";
	case VQL_RETURNED_LOST: return "lost";
	default: return "cannot start";
	}
}

/* Not lent any more: the daemon's to serve, or nobody's. */
static void lane_return(struct vql_lane *lane, enum vql_queue_returned why)
{
	lane->lent = false;
	lane->returned = why;
	trace_vqlane_lane(lane->disk->lane_config ? lane->disk->lane_config->slot : 0,
			  (u16)lane->index, VQL_LANE_KERNEL, VQL_LANE_POLL, returned_text(why));
	vql_disk_changed(lane->disk);
}

void vql_lanes_retry(struct work_struct *work)
{
	struct vql_disk *disk = container_of(work, struct vql_disk, lane_retry.work);

	mutex_lock(&disk->lock);
	vql_lanes_start(disk);
	mutex_unlock(&disk->lock);
	vql_disk_put(disk);
}

void vql_lanes_start(struct vql_disk *disk)
{
	struct vql_lane_mem *mem;
	u32 i;
	int err;

	lockdep_assert_held(&disk->lock);
	if (!vql_disk_runnable(disk))
		return;
	for (i = 0; i < disk->nqueues; i++) {
		struct vql_queue *q = &disk->queues[i];
		struct vql_lane *lane = &q->lane;

		if (!lane->lent || !q->ready || lane->state != VQL_LANE_OFF)
			continue;
		if (lane->taken_back) {
			lane_return(lane, VQL_RETURNED_TAKEN);
			continue;
		}
		err = 0;
		if (!disk->lane_mem) {
			mem = vql_lane_mem_create(disk->ms, disk->lane_config);
			err = PTR_ERR_OR_ZERO(mem);
			if (!err)
				disk->lane_mem = mem;
		}
		if (!err)
			err = lane_start(lane, q);
		/* The controller is being restarted, or whoever calls us is killed: the lane waits for neither. */
		if (err == -EAGAIN || err == -EINTR) {
			vql_lanes_start_later(disk);
			continue; /* others may have been taken back */
		}
		if (err) {
			dev_warn_ratelimited(&disk->vdev.dev,
					     "queue %u is not served in the kernel (%d)\n", i, err);
			lane_return(lane, VQL_RETURNED_START);
		}
	}
}

/* ---- stopping; all under disk->lock ---- */

/* struct QueueRegionSplit and struct DescStateSplit of the vhost-user specification, "Inflight I/O". */
struct record_desc {
	u8 inflight;
	u8 padding[5];
	u16 next;
	u64 counter;
};
struct record {
	u64 features;
	u16 version;
	u16 desc_num;
	u16 last_batch_head;
	u16 used_idx;
	struct record_desc desc[];
};
static_assert(sizeof(struct record) == 16 && sizeof(struct record_desc) == 16);
static_assert(VQL_INFLIGHT_BYTES(4) >= sizeof(struct record) + 4 * sizeof(struct record_desc));

/* What the daemon is to find, which goes on: what was lost is in flight, and nothing else. */
static void write_record(struct vql_lane *lane)
{
	struct vql_disk *disk = lane->disk;
	u64 bytes = vql_disk_queue_record_bytes(disk);
	struct record *record = disk->record + lane->index * bytes;
	u32 head;

	memset(record, 0, bytes);
	record->version = 1;
	record->desc_num = (u16)disk->queue_size;
	record->used_idx = lane->ring.next_used;
	for (head = 0; head < lane->ring.num; head++) {
		if (!lane->ios[head].busy)
			continue;
		record->desc[head].inflight = 1;
		record->desc[head].counter = lane->ios[head].taken;
	}
}

static bool lane_is_done(struct vql_lane *lane)
{
	bool done;

	spin_lock_irq(&lane->lock);
	done = lane->state == VQL_LANE_OFF ||
	       (lane->state == VQL_LANE_STOPS && lane->in_flight == lane->lost);
	spin_unlock_irq(&lane->lock);
	return done;
}

static void wait_for_contexts(struct vql_lane *lane)
{
	u32 i;

	vql_lane_cancel_works(lane);
	for (i = 0; i < lane->config->nkqs; i++)
		vql_kq_synchronize(lane->config->kqs[i]);
	irq_work_sync(&lane->signal);
}

/* From STOPS, with nothing under way but what is lost. */
static void lane_off(struct vql_lane *lane)
{
	struct vql_queue *q = vql_lane_queue(lane);
	enum vql_queue_returned why;
	bool broken;

	spin_lock_irq(&lane->lock);
	WRITE_ONCE(lane->state, VQL_LANE_OFF);
	why = lane->why;
	broken = lane->ring_error;
	spin_unlock_irq(&lane->lock);
	/* Whoever has the lock from now on finds it OFF; who had it before is waited for. */
	wait_for_contexts(lane);

	q->next_avail = lane->ring.next_avail;
	write_record(lane);
	lane->dirty = lane->lost;
	if (lane->lost && why == VQL_RETURNED_NOT)
		why = VQL_RETURNED_LOST;
	if (broken)
		dev_warn(&lane->disk->vdev.dev, "queue %u: stopped: %s\n", lane->index,
			 vql_ring_error_text(lane->ring_error));
	lane_free(lane);
	if (why != VQL_RETURNED_NOT || broken)
		lane_return(lane, why);
	if (broken)
		vql_disk_needs_reset(lane->disk);
}

/* No lane runs: nobody has the addresses. */
static void mem_free_if_idle(struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++)
		if (disk->queues[i].lane.state != VQL_LANE_OFF)
			return;
	vql_lane_mem_free(disk->lane_mem);
	disk->lane_mem = NULL;
}

static bool lanes_done(struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++)
		if (!lane_is_done(&disk->queues[i].lane))
			return false;
	return true;
}

static void ask_stop(struct vql_lane *lane, enum vql_queue_returned why)
{
	spin_lock_irq(&lane->lock);
	if (lane->state == VQL_LANE_RUNS) {
		WRITE_ONCE(lane->state, VQL_LANE_STOPS);
		lane->why = why;
		vql_kq_leave_line(lane);
	}
	spin_unlock_irq(&lane->lock);
}

/*
 * A controller does not answer in time: it loses the queue pair where the lane waits for it, and all lanes what they
 * have there. That of discards is not that of data, so that a guest that ends while its discards are slow costs others
 * no more than theirs.
 */
static void abandon(struct vql_lane *lane)
{
	u32 i;

	dev_warn(&lane->disk->vdev.dev,
		 "queue %u: requests not answered in %u ms: given up in the kernel\n", lane->index,
		 vql_disk_drain_ms());
	for (i = 0; i < lane->config->nkqs; i++)
		vql_kq_abandon(lane->config->kqs[i], lane);
	/* What of others had just ended was no command any more, and is yet to be told. */
	for (i = 0; i < lane->config->nkqs; i++)
		vql_kq_synchronize(lane->config->kqs[i]);
	WARN_ON(!lane_is_done(lane));
}

void vql_lanes_ask_stop(struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++)
		ask_stop(&disk->queues[i].lane, VQL_RETURNED_NOT);
}

/* It lets go of disk->lock while it waits, so that others may have put lanes OFF when it returns. */
void vql_lanes_wait_stopped(struct vql_disk *disk, long left)
{
	u32 i;

	while (!lanes_done(disk) && left) {
		mutex_unlock(&disk->lock);
		left = wait_event_idle_timeout(disk->wait, lanes_done(disk), left);
		mutex_lock(&disk->lock);
	}
	for (i = 0; i < disk->nqueues; i++) {
		struct vql_lane *lane = &disk->queues[i].lane;

		if (lane->state == VQL_LANE_OFF)
			continue;
		if (!lane_is_done(lane))
			abandon(lane);
		lane_off(lane);
	}
	mem_free_if_idle(disk);
}

void vql_lane_take(struct vql_queue *q)
{
	struct vql_lane *lane = &q->lane;

	if (!lane->lent)
		return;
	lane->taken_back = true;
	if (lane->state == VQL_LANE_OFF) {
		if (!lane->disk->frozen)
			lane_return(lane, VQL_RETURNED_TAKEN);
		return; /* the thaw finds that it was taken back */
	}
	ask_stop(lane, VQL_RETURNED_TAKEN);
	vql_lane_poke(lane->disk);
}

void vql_lane_work(struct work_struct *work)
{
	struct vql_disk *disk = container_of(work, struct vql_disk, lane_work);
	u32 i;

	mutex_lock(&disk->lock);
	wake_up_all(&disk->wait);
	for (i = 0; i < disk->nqueues; i++) {
		struct vql_lane *lane = &disk->queues[i].lane;

		if (READ_ONCE(lane->busy) && lane->lent)
			vql_disk_changed(disk);
		/* Those that a freeze has asked to stop are its to put OFF. */
		if (lane->state == VQL_LANE_STOPS && !disk->frozen && lane_is_done(lane)) {
			lane_off(lane);
			mem_free_if_idle(disk);
		}
	}
	mutex_unlock(&disk->lock);
	vql_disk_put(disk);
}

/* ---- what the daemon and the driver ask for ---- */

void vql_lanes_renew(struct vql_disk *disk)
{
	if (disk->frozen || !disk->lane_mem ||
	    !vql_lane_mem_is_stale(disk->lane_mem, disk->lane_config))
		return;
	disk->frozen++;
	vql_lanes_ask_stop(disk);
	vql_lanes_wait_stopped(disk, msecs_to_jiffies(vql_disk_drain_ms()));
	disk->frozen--;
	vql_lanes_start(disk);
}

int vql_lane_lend(struct vql_queue *q, u16 next_avail)
{
	struct vql_lane *lane = &q->lane;
	struct vql_disk *disk = lane->disk;

	if (lane->lent)
		return -EBUSY;
	if (!disk->lane_config || !q->ready)
		return -EINVAL;
	q->next_avail = next_avail;
	lane->dirty = false;
	lane->returned = VQL_RETURNED_NOT;
	lane->taken_back = false;
	lane->lent = true;
	vql_lanes_start(disk);
	if (lane->lent)
		return 0;
	lane->returned = VQL_RETURNED_NOT; /* it is told here */
	return -EOPNOTSUPP;
}

int vql_lanes_config(struct vql_disk *disk, struct vql_lane_config **config)
{
	int err = -ENODEV;
	u32 i;

	/* While this waits no lane is to start; the lease is not concerned. */
	disk->frozen++;
	vql_lanes_ask_stop(disk);
	vql_lanes_wait_stopped(disk, msecs_to_jiffies(vql_disk_drain_ms()));
	if (!disk->gone) { /* it let go of the lock */
		swap(disk->lane_config, *config);
		err = 0;
	}
	for (i = 0; i < disk->nqueues && !disk->lane_config; i++)
		if (disk->queues[i].lane.lent)
			lane_return(&disk->queues[i].lane, VQL_RETURNED_TAKEN);
	disk->frozen--;
	vql_lanes_start(disk);
	return err;
}

void vql_lanes_refresh(struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues && disk->lane_config; i++) {
		struct vql_lane *lane = &disk->queues[i].lane;

		spin_lock_irq(&lane->lock);
		lane->blk = blk_of(disk);
		spin_unlock_irq(&lane->lock);
	}
}

void vql_lanes_reset(struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++) {
		struct vql_lane *lane = &disk->queues[i].lane;

		WARN_ON(lane->state != VQL_LANE_OFF);
		lane->lent = false;
		lane->dirty = false;
		lane->returned = VQL_RETURNED_NOT;
	}
}
