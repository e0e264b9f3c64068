// SPDX-License-Identifier: GPL-2.0-only
/*
 * The daemon's side of a disk: a claim's file (lease, state, record of what is in flight) and the
 * files of its queues (kicked by the driver, interrupting it).
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>
#include <uapi/linux/virtio_blk.h>
#include "disk/disk.h"

/* ---- the record ---- */

void vql_claim_zap(struct vql_claim *claim)
{
	lockdep_assert_held(&vql_attach_lock);
	claim->generation++;
	unmap_mapping_range(claim->mapping, 0, 0, 1);
}

/* A mapping lives until the next zap; one made after that is a new one. */
static vm_fault_t record_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct vql_claim *claim = vma->vm_file->private_data;
	vm_fault_t ret = VM_FAULT_SIGBUS;

	mutex_lock(&vql_attach_lock);
	if (claim->generation == (unsigned long)vma->vm_private_data)
		/* The record lives as long as the disk, which the file holds, which the VMA holds. */
		ret = vmf_insert_pfn(
			vma, vmf->address,
			vmalloc_to_pfn(claim->disk->record + ((size_t)vmf->pgoff << PAGE_SHIFT)));
	mutex_unlock(&vql_attach_lock);
	return ret;
}

static const struct vm_operations_struct record_vm_ops = {
	.fault = record_fault,
};

static int claim_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct vql_claim *claim = file->private_data;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff || vma_pages(vma) > vql_disk_record_bytes(claim->disk) >> PAGE_SHIFT)
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &record_vm_ops;
	mutex_lock(&vql_attach_lock);
	vma->vm_private_data = (void *)claim->generation;
	mutex_unlock(&vql_attach_lock);
	return 0;
}

/* ---- a queue's file ---- */

struct queue_file {
	struct vql_disk *disk; /* a reference */
	struct vql_queue *q;
};

static __poll_t queue_poll(struct file *file, poll_table *wait)
{
	struct queue_file *qf = file->private_data;

	poll_wait(file, &qf->q->kicks, wait);
	/* Pairs with the wake-up in kick_vq(), which orders as any wait queue does. */
	return EPOLLOUT | EPOLLWRNORM | (READ_ONCE(qf->q->kicked) ? EPOLLIN | EPOLLRDNORM : 0);
}

/* The bytes mean nothing; eight of them as with an eventfd. */
static ssize_t queue_write(struct kiocb *iocb, struct iov_iter *from)
{
	struct queue_file *qf = iocb->ki_filp->private_data;

	if (iov_iter_count(from) != sizeof(u64))
		return -EINVAL;
	iov_iter_advance(from, sizeof(u64));
	vql_bell_ring(&qf->q->bell);
	return sizeof(u64);
}

static int queue_release(struct inode *inode, struct file *file)
{
	struct queue_file *qf = file->private_data;

	vql_disk_put(qf->disk);
	kfree(qf);
	return 0;
}

static const struct file_operations queue_fops = {
	.owner = THIS_MODULE,
	.release = queue_release,
	.poll = queue_poll,
	.write_iter = queue_write,
	.llseek = noop_llseek,
};

static long claim_queue_fd(struct vql_claim *claim, unsigned long index)
{
	struct queue_file *qf;
	struct file *file;
	int fd;

	if (index >= claim->disk->nqueues)
		return -EINVAL;
	index = array_index_nospec(index, claim->disk->nqueues);
	qf = kzalloc(sizeof(*qf), GFP_KERNEL);
	if (!qf)
		return -ENOMEM;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		goto err_free;
	file = anon_inode_getfile("[vqlane-queue]", &queue_fops, qf, O_RDWR);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		fd = PTR_ERR(file);
		goto err_free;
	}
	qf->disk = vql_disk_get(claim->disk);
	qf->q = &claim->disk->queues[index];
	/* A write never waits, so io_uring does it in place instead of handing it to a worker. */
	file->f_mode |= FMODE_NOWAIT;
	fd_install(fd, file);
	return fd;

err_free:
	kfree(qf);
	return fd;
}

/* ---- a claim's commands ---- */

static u32 state_flags(const struct vql_claim *claim)
{
	const struct vql_disk *disk = claim->disk;

	return (vql_disk_runnable(disk) ? VQL_DISK_RUNNABLE : 0) |
	       (disk->leased ? VQL_DISK_LEASED : 0) | (disk->recalled ? VQL_DISK_RECALL : 0) |
	       (claim->revoked ? VQL_DISK_REVOKED : 0) |
	       (disk->suspended ? VQL_DISK_SUSPENDED : 0) | (disk->dirty ? VQL_DISK_DIRTY : 0);
}

static long claim_state(struct vql_claim *claim, struct vql_disk_state __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_state state;
	int err;

	err = vql_copy_in(&state, arg, sizeof(state));
	if (err)
		return err;
	if (state.reserved[0] || state.reserved[1])
		return -EINVAL;
	mutex_lock(&disk->lock);
	state.flags = state_flags(claim);
	state.epoch = disk->epoch;
	state.features = disk->features;
	state.status = disk->status;
	state.writeback = disk->writeback;
	WRITE_ONCE(claim->seen, disk->changes);
	mutex_unlock(&disk->lock);
	return copy_to_user(arg, &state, sizeof(state)) ? -EFAULT : 0;
}

static long claim_queue(struct vql_claim *claim, struct vql_disk_queue __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_queue queue;
	const struct vql_queue *q;
	int err;

	err = vql_copy_in(&queue, arg, sizeof(queue));
	if (err)
		return err;
	if (queue.refused || queue.index >= disk->nqueues)
		return -EINVAL;
	q = &disk->queues[array_index_nospec(queue.index, disk->nqueues)];
	mutex_lock(&disk->lock);
	queue.desc = q->desc;
	queue.avail = q->avail;
	queue.used = q->used;
	queue.num = q->num;
	queue.ready = q->ready;
	queue.next_avail = q->next_avail;
	queue.flags = (q->lane.lent ? VQL_QUEUE_LENT : 0) |
		      (q->lane.lent && READ_ONCE(q->lane.busy) ? VQL_QUEUE_BUSY : 0) |
		      (q->lane.dirty ? VQL_QUEUE_DIRTY : 0);
	queue.returned = q->lane.returned;
	queue.refused = READ_ONCE(q->lane.refused);
	queue.served = READ_ONCE(q->lane.served);
	mutex_unlock(&disk->lock);
	return copy_to_user(arg, &queue, sizeof(queue)) ? -EFAULT : 0;
}

static int may_acquire(const struct vql_disk *disk, u64 epoch)
{
	if (disk->leased)
		return -EBUSY;
	if (!vql_disk_runnable(disk))
		return -EAGAIN;
	return epoch == disk->epoch ? 0 : -ESTALE;
}

static long claim_acquire(struct vql_claim *claim, struct vql_disk_acquire __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_acquire acquire;
	long ret;

	ret = vql_copy_in(&acquire, arg, sizeof(acquire));
	if (ret)
		return ret;
	if (acquire.flags)
		return -EINVAL;
	mutex_lock(&disk->lock);
	ret = may_acquire(disk, acquire.epoch);
	if (!ret && disk->unfenced) {
		disk->frozen++;
		vql_disk_fence(disk);
		disk->frozen--;
		/* It let go of the lock: lanes may have stopped meanwhile, or were to start. */
		vql_lanes_start(disk);
		vql_lane_poke(disk);
		ret = may_acquire(disk, acquire.epoch);
	}
	if (!ret)
		ret = vql_mspace_open(disk->ms);
	if (ret >= 0) {
		disk->leased = true;
		disk->recalled = false;
		claim->revoked = false;
	}
	mutex_unlock(&disk->lock);
	return ret;
}

static long claim_yield(struct vql_claim *claim, struct vql_disk_yield __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_yield yield;
	bool untouched = false;
	long ret;
	u32 *next;
	u32 i;

	ret = vql_copy_in(&yield, arg, sizeof(yield));
	if (ret)
		return ret;
	if (yield.nqueues != disk->nqueues)
		return -EINVAL;
	next = memdup_user(u64_to_user_ptr(yield.next_avail), disk->nqueues * sizeof(*next));
	if (IS_ERR(next))
		return PTR_ERR(next);
	for (i = 0; i < disk->nqueues; i++) {
		if (next[i] > U16_MAX && next[i] != VQL_YIELD_UNTOUCHED) {
			kfree(next);
			return -EINVAL;
		}
	}
	mutex_lock(&disk->lock);
	if (!disk->leased) {
		ret = -ESTALE; /* revoked, or never acquired */
	} else {
		for (i = 0; i < disk->nqueues; i++) {
			struct vql_queue *q = &disk->queues[i];

			if (!q->ready || q->lane.lent)
				continue;
			if (next[i] == VQL_YIELD_UNTOUCHED) {
				untouched = true;
				continue;
			}
			q->next_avail = (u16)next[i];
			q->lane.dirty = false;
		}
		disk->leased = false;
		disk->recalled = false;
		/* What a dead holder left is for the next one, where this one did not come to it. */
		disk->dirty = disk->dirty && untouched;
		vql_disk_changed(disk);
	}
	mutex_unlock(&disk->lock);
	kfree(next);
	return ret;
}

static long claim_config(struct vql_claim *claim, struct vql_disk_config __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_config config;
	long ret;

	ret = vql_copy_in(&config, arg, sizeof(config));
	if (ret)
		return ret;
	if (config.reserved)
		return -EINVAL;
	mutex_lock(&disk->lock);
	memcpy(disk->config, config.config, sizeof(disk->config));
	disk->config_generation++;
	vql_lanes_refresh(disk);
	vql_bell_ring(&disk->config_bell);
	mutex_unlock(&disk->lock);
	return 0;
}

static long claim_lane(struct vql_claim *claim, struct vql_disk_lane __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_lane_config *config = NULL;
	struct vql_disk_lane lane;
	int err;

	err = vql_copy_in(&lane, arg, sizeof(lane));
	if (err)
		return err;
	if (lane.reserved || lane.nranges > VQL_MAX_RANGES || lane.slot >= VQL_MAX_DISKS)
		return -EINVAL;
	if (lane.nranges) {
		config = vql_lane_config_create(&lane);
		if (IS_ERR(config))
			return PTR_ERR(config);
	}
	mutex_lock(&disk->lock);
	/* As for any change below running queues; but the daemon's own may run on. */
	err = disk->gone ? -ENODEV : vql_lanes_config(disk, &config);
	mutex_unlock(&disk->lock);
	vql_lane_config_free(config); /* the old one, or the new one in vain */
	return err;
}

/* The queue of a command that needs the lease; under disk->lock. */
static struct vql_queue *leased_queue(struct vql_disk *disk, u32 index)
{
	if (index >= disk->nqueues)
		return ERR_PTR(-EINVAL);
	if (!disk->leased)
		return ERR_PTR(-ESTALE);
	return &disk->queues[array_index_nospec(index, disk->nqueues)];
}

static long claim_lend(struct vql_claim *claim, struct vql_disk_lend __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_lend lend;
	struct vql_queue *q;
	long ret;

	ret = vql_copy_in(&lend, arg, sizeof(lend));
	if (ret)
		return ret;
	if (lend.reserved || lend.next_avail > U16_MAX)
		return -EINVAL;
	mutex_lock(&disk->lock);
	vql_lanes_renew(disk);
	q = leased_queue(disk, lend.index);
	if (IS_ERR(q))
		ret = PTR_ERR(q);
	else if (disk->recalled || disk->frozen)
		ret = -ESTALE;
	else
		ret = vql_lane_lend(q, (u16)lend.next_avail);
	mutex_unlock(&disk->lock);
	return ret;
}

static long claim_take(struct vql_claim *claim, struct vql_disk_take __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_take take;
	struct vql_queue *q;
	long ret;

	ret = vql_copy_in(&take, arg, sizeof(take));
	if (ret)
		return ret;
	mutex_lock(&disk->lock);
	q = leased_queue(disk, take.index);
	if (IS_ERR(q))
		ret = PTR_ERR(q);
	else
		vql_lane_take(q);
	mutex_unlock(&disk->lock);
	return ret;
}

static int validate_remap(const struct vql_disk *disk, const struct vql_disk_remap *remap)
{
	/* Where a policy divided a request it may have been anywhere, not at the disk's blocks alone. */
	const struct vql_blk_disk blk = {
		.sectors = vql_disk_sectors(disk),
		.block_bytes = VQL_SECTOR_BYTES,
	};

	switch (remap->op) {
	case VQL_OP_READ:
	case VQL_OP_WRITE:
	case VQL_OP_DISCARD:
	case VQL_OP_WRITE_ZEROES: break;
	default: return -EINVAL;
	}
	if (!remap->sectors || !vql_blk_range_valid(&blk, remap->sector, remap->sectors))
		return -EINVAL;
	return 0;
}

static long claim_remap(struct vql_claim *claim, struct vql_disk_remap __user *arg)
{
	struct vql_disk *disk = claim->disk;
	struct vql_disk_remap remap;
	struct vqlane_remap_req req;
	struct vql_queue *q;
	long ret;

	ret = vql_copy_in(&remap, arg, sizeof(remap));
	if (ret)
		return ret;
	req = (struct vqlane_remap_req){
		.op = remap.op,
		.sector = remap.sector,
		.sectors = remap.sectors,
	};
	mutex_lock(&disk->lock);
	q = leased_queue(disk, remap.index);
	if (IS_ERR(q))
		ret = PTR_ERR(q);
	else
		ret = validate_remap(disk, &remap) ?: vql_lane_ask(&q->lane, &req);
	mutex_unlock(&disk->lock);
	if (ret)
		return ret;
	remap.verdict = req.verdict;
	remap.status = req.status;
	remap.target = req.target;
	remap.target_sector = req.target_sector;
	remap.target_sectors = req.target_sectors;
	return copy_to_user(arg, &remap, sizeof(remap)) ? -EFAULT : 0;
}

static long claim_broken(struct vql_claim *claim)
{
	mutex_lock(&claim->disk->lock);
	/* Where no driver is (any more) there is nobody to reset it, and nothing to be reset. */
	if (claim->disk->status)
		vql_disk_needs_reset(claim->disk);
	mutex_unlock(&claim->disk->lock);
	return 0;
}

static long claim_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vql_claim *claim = file->private_data;
	void __user *argp = (void __user *)arg;

	if (READ_ONCE(claim->disk->gone))
		return -ENODEV;
	switch (cmd) {
	case VQL_IOC_DISK_STATE: return claim_state(claim, argp);
	case VQL_IOC_DISK_QUEUE: return claim_queue(claim, argp);
	case VQL_IOC_DISK_QUEUE_FD: return claim_queue_fd(claim, arg);
	case VQL_IOC_DISK_ACQUIRE: return claim_acquire(claim, argp);
	case VQL_IOC_DISK_YIELD: return claim_yield(claim, argp);
	case VQL_IOC_DISK_CONFIG: return claim_config(claim, argp);
	case VQL_IOC_DISK_BROKEN: return claim_broken(claim);
	case VQL_IOC_DISK_LANE: return claim_lane(claim, argp);
	case VQL_IOC_DISK_LEND: return claim_lend(claim, argp);
	case VQL_IOC_DISK_TAKE: return claim_take(claim, argp);
	case VQL_IOC_DISK_REMAP: return claim_remap(claim, argp);
	case VQL_IOC_DISK_REMOVE: return vql_disk_remove(claim->disk, arg);
	default: return -ENOTTY;
	}
}

static __poll_t claim_poll(struct file *file, poll_table *wait)
{
	struct vql_claim *claim = file->private_data;

	poll_wait(file, &claim->disk->wait, wait);
	if (READ_ONCE(claim->disk->gone))
		return EPOLLIN | EPOLLRDNORM | EPOLLHUP;
	return READ_ONCE(claim->seen) != READ_ONCE(claim->disk->changes) ? EPOLLIN | EPOLLRDNORM
									 : 0;
}

/* Did the holder of the lease serve any queue itself? */
static bool polled(const struct vql_disk *disk)
{
	u32 i;

	for (i = 0; i < disk->nqueues; i++)
		if (disk->queues[i].ready && disk->queues[i].num && !disk->queues[i].lane.lent)
			return true;
	return false;
}

/*
 * The claim ends with its last descriptor, in whatever way its process ends. A lease ends with it,
 * with commands perhaps under way: nobody else takes it, and no page is let go, before a fence.
 */
static int claim_release(struct inode *inode, struct file *file)
{
	struct vql_claim *claim = file->private_data;
	struct vql_disk *disk = claim->disk;

	mutex_lock(&disk->lock);
	if (disk->claim == claim) {
		WRITE_ONCE(disk->claim, NULL);
		vql_disk_ring_all(disk);
		if (disk->leased) {
			disk->leased = false;
			disk->recalled = false;
			disk->dirty = polled(disk);
			disk->unfenced = true;
			vql_disk_changed(disk);
		}
	}
	mutex_unlock(&disk->lock);
	vql_disk_put(disk);
	kfree(claim);
	return 0;
}

static const struct file_operations claim_fops = {
	.owner = THIS_MODULE,
	.release = claim_release,
	.poll = claim_poll,
	.mmap = claim_mmap,
	.unlocked_ioctl = claim_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

struct file *vql_claim_open(struct vql_disk *disk)
{
	struct vql_claim *claim = kzalloc(sizeof(*claim), GFP_KERNEL);
	struct file *file;
	int err = 0;

	if (!claim)
		return ERR_PTR(-ENOMEM);
	claim->disk = vql_disk_get(disk);
	file = anon_inode_create_getfile("[vqlane-disk]", &claim_fops, claim, O_RDWR, NULL);
	if (IS_ERR(file)) {
		vql_disk_put(disk);
		kfree(claim);
		return file;
	}
	claim->mapping = file->f_mapping;
	mutex_lock(&disk->lock);
	if (disk->gone)
		err = -ENOENT;
	else if (disk->claim)
		err = -EBUSY;
	else
		WRITE_ONCE(disk->claim, claim);
	claim->seen = disk->changes - 1;
	mutex_unlock(&disk->lock);
	if (err) {
		fput(file);
		return ERR_PTR(err);
	}
	return file;
}
