// SPDX-License-Identifier: GPL-2.0-only
/*
 * Queue pairs: an I/O submission and a completion queue of a controller, as a file whose holder
 * maps and drives them.
 *
 *   structure and status page  until the last reference goes (the file has one)
 *   queues on the controller   from create until kill, reset or unbind: while the state is LIVE
 *   memory of the queues       from create until release, or unbind: whichever is first. A VMA holds
 *                              its file, so at release there is none; at unbind they were zapped.
 *
 * The state goes from LIVE to LOST or GONE only when the controller does no DMA for this queue pair
 * any more, under ctrl->lock and vql_attach_lock; so either of the two keeps a live one live.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/dma-mapping.h>
#include <linux/file.h>
#include <linux/interrupt.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "nvme/ctrl.h"

/* ---- references ---- */

void vql_qpair_get(struct vql_qpair *qp) { kref_get(&qp->ref); }

static void qpair_free(struct kref *ref)
{
	struct vql_qpair *qp = container_of(ref, struct vql_qpair, ref);

	vql_ctrl_put(qp->ctrl);
	free_page((unsigned long)qp->status);
	kfree(qp);
}

void vql_qpair_put(struct vql_qpair *qp) { kref_put(&qp->ref, qpair_free); }

struct vql_ctrl *vql_qpair_ctrl(struct vql_qpair *qp) { return qp->ctrl; }

bool vql_qpair_is_own(const struct vql_qpair *qp) { return qp->handler; }

struct vql_attachments *vql_qpair_attachments(struct vql_qpair *qp) { return &qp->attachments; }

/* ---- interrupt ---- */

/*
 * One interrupt for each ARM: so a queue pair that is polled costs none. Disabled here, told to be
 * armed no more after that, and told to have fired at last. An ARM that finds it armed still has
 * cleared fired before that (the exchange in qpair_arm() pairs with the barrier here), so its holder
 * is woken; any later one enables the interrupt again, and is woken once too often at worst.
 */
static irqreturn_t qpair_irq(int irq, void *data)
{
	struct vql_qpair *qp = data;

	disable_irq_nosync((unsigned int)irq);
	atomic_set_release(&qp->is_armed, 0);
	smp_wmb();
	WRITE_ONCE(qp->fired, true);
	wake_up_all(&qp->wait);
	return IRQ_HANDLED;
}

static int qpair_arm(struct vql_qpair *qp)
{
	int err = 0;

	mutex_lock(&qp->irq_lock);
	if (!vql_qpair_is_live(qp)) {
		err = -ENODEV;
	} else if (!qp->irq) {
		err = -EOPNOTSUPP;
	} else {
		WRITE_ONCE(qp->fired, false);
		if (!atomic_xchg(&qp->is_armed, 1))
			enable_irq((unsigned int)qp->irq);
	}
	mutex_unlock(&qp->irq_lock);
	return err;
}

/* Returns the vector, or 0 when none is left: then the queue can only be polled. */
static int qpair_request_irq(struct vql_qpair *qp)
{
	struct vql_ctrl *ctrl = qp->ctrl;
	int irq, err;

	if (qp->qid >= ctrl->vectors)
		return 0;
	irq = pci_irq_vector(ctrl->pdev, qp->qid);
	snprintf(qp->irq_name, sizeof(qp->irq_name), "vqlane-%s-q%u", ctrl->name, qp->qid);
	/* The module's own handler is wanted always, a holder's when he arms. */
	err = request_irq((unsigned int)irq, qp->handler ?: qpair_irq,
			  qp->handler ? 0 : IRQF_NO_AUTOEN, qp->irq_name, qp);
	if (err) {
		vql_ctrl_warn(ctrl, "queue pair %u goes without interrupt (error %d)\n", qp->qid,
			      err);
		return 0;
	}
	mutex_lock(&qp->irq_lock);
	qp->irq = irq;
	mutex_unlock(&qp->irq_lock);
	return qp->qid;
}

static void qpair_free_irq(struct vql_qpair *qp)
{
	mutex_lock(&qp->irq_lock);
	if (qp->irq)
		free_irq((unsigned int)qp->irq, qp);
	qp->irq = 0;
	mutex_unlock(&qp->irq_lock);
}

void vql_qpair_synchronize(struct vql_qpair *qp)
{
	mutex_lock(&qp->irq_lock);
	if (qp->irq)
		synchronize_irq((unsigned int)qp->irq);
	mutex_unlock(&qp->irq_lock);
}

/* ---- beginning and end ---- */

static void qpair_free_memory(struct vql_qpair *qp)
{
	struct device *dev = &qp->ctrl->pdev->dev;

	lockdep_assert_held(&qp->ctrl->lock);
	if (list_empty(&qp->list))
		return;
	vql_coherent_free(dev, &qp->pool);
	vql_coherent_free(dev, &qp->cq);
	vql_coherent_free(dev, &qp->sq);
	list_del_init(&qp->list);
}

static int qpair_alloc_memory(struct vql_qpair *qp)
{
	struct device *dev = &qp->ctrl->pdev->dev;
	int err;

	list_add(&qp->list, &qp->ctrl->qpairs);
	err = vql_coherent_alloc(dev, &qp->sq, qp->depth * sizeof(struct nvme_command));
	if (!err)
		err = vql_coherent_alloc(dev, &qp->cq, qp->depth * sizeof(struct nvme_completion));
	if (!err && qp->pool_pages)
		err = vql_coherent_alloc(dev, &qp->pool, (size_t)qp->pool_pages << PAGE_SHIFT);
	return err;
}

/* 0; or why the controller did not take it, and then it has nothing of it. */
static int qpair_create_queues(struct vql_qpair *qp, int vector)
{
	struct vql_ctrl *ctrl = qp->ctrl;
	int err;

	if (qp->has_shadow) {
		u32 *shadow = ctrl->shadow.cpu + qp->doorbell;
		u32 *event_index = ctrl->event_index.cpu + qp->doorbell;

		/* What the last queue pair of this identifier left would be doorbells rung. */
		shadow[0] = event_index[0] = 0;
		shadow[ctrl->stride / 4] = event_index[ctrl->stride / 4] = 0;
	}
	err = vql_admin_create_cq(ctrl, qp->qid, qp->cq.dma, qp->depth, vector);
	if (err)
		return err > 0 ? -EIO : err;
	err = vql_admin_create_sq(ctrl, qp->qid, qp->sq.dma, qp->depth);
	if (err > 0 && vql_admin_delete(ctrl, nvme_admin_delete_cq, qp->qid) > 0)
		vql_ctrl_reset(ctrl);
	return err > 0 ? -EIO : err;
}

/* Under ctrl->lock. On failure the queue pair is as before, but may have memory. */
static int qpair_start(struct vql_qpair *qp)
{
	struct vql_ctrl *ctrl = qp->ctrl;
	unsigned long qid;
	int err;

	lockdep_assert_held(&ctrl->lock);
	err = vql_ctrl_usable(ctrl);
	if (err)
		return err;
	if (qp->depth > ctrl->info.max_depth)
		return -EINVAL;
	qid = find_next_zero_bit(ctrl->qids, ctrl->info.max_qpairs + 1, 1);
	if (qid > ctrl->info.max_qpairs)
		return -ENOSPC;
	qp->qid = (u16)qid;
	qp->doorbell = qp->qid * 2u * ctrl->stride;
	qp->has_shadow = ctrl->info.flags & VQL_CTRL_SHADOW;
	err = qpair_alloc_memory(qp);
	if (err)
		return err;
	err = qpair_create_queues(qp, qpair_request_irq(qp));
	if (err) {
		vql_ctrl_warn(ctrl, "cannot make queue pair %u (error %d)\n", qp->qid, err);
		qpair_free_irq(qp);
		return err;
	}
	__set_bit(qp->qid, ctrl->qids);
	WRITE_ONCE(qp->ended, false);
	WRITE_ONCE(qp->status->state, VQL_QPAIR_LIVE);
	vql_ctrl_set_free(ctrl);
	return 0;
}

/*
 * No DMA is done for the queue pair any more. Its end for all others, and at most one step on
 * (LIVE, LOST, GONE). Under ctrl->lock.
 */
static void qpair_end(struct vql_qpair *qp, enum vql_qpair_state state)
{
	struct vql_ctrl *ctrl = qp->ctrl;
	bool was_live = vql_qpair_is_live(qp);

	lockdep_assert_held(&ctrl->lock);
	if (state <= qp->status->state)
		return;
	mutex_lock(&vql_attach_lock);
	WRITE_ONCE(qp->status->state, state);
	/* After the state: who gets a SIGBUS for this finds out why. */
	if (was_live && qp->mapping)
		vql_qpair_zap(qp);
	mutex_unlock(&vql_attach_lock);
	wake_up_all(&qp->wait);
	if (was_live) {
		qpair_free_irq(qp);
		if (qp->lost)
			qp->lost(qp);
		/* After the zap: the next to have this identifier has these doorbells for himself. */
		__clear_bit(qp->qid, ctrl->qids);
		vql_ctrl_set_free(ctrl);
		/* Pairs with qpair_wait_killed(), which looks without the lock: all of the above is done. */
		smp_store_release(&qp->ended, true);
		wake_up_all(&qp->wait);
	}
}

static int qpair_delete(struct vql_qpair *qp)
{
	int err = vql_admin_delete(qp->ctrl, nvme_admin_delete_sq, qp->qid);

	/* Deleting the submission queue ends its commands; the other only ends their telling. */
	return err ? err : vql_admin_delete(qp->ctrl, nvme_admin_delete_cq, qp->qid);
}

/* Under ctrl->lock. */
static void qpair_kill(struct vql_qpair *qp)
{
	if (!vql_qpair_is_live(qp))
		return;
	/* An error less than 0 has reset the controller, and so ended this queue pair as well. */
	if (qpair_delete(qp) > 0)
		vql_ctrl_reset(qp->ctrl);
	qpair_end(qp, VQL_QPAIR_LOST);
}

/*
 * What it waits for is the queue pair's end, whoever brings it, and not the lock: who has that may be starting the
 * controller again, which takes minutes. So it does not sleep in line for it.
 */
static void qpair_wait_killed(struct vql_qpair *qp)
{
	while (!smp_load_acquire(&qp->ended)) {
		if (mutex_trylock(&qp->ctrl->lock)) {
			qpair_kill(qp);
			mutex_unlock(&qp->ctrl->lock);
			return;
		}
		wait_event_timeout(qp->wait, READ_ONCE(qp->ended), max(HZ / 200, 1));
	}
}

/* A VMM waits for it, or may come to. */
void vql_qpair_kill(struct vql_qpair *qp)
{
	atomic_inc(&qp->ctrl->hurried);
	qpair_wait_killed(qp);
	atomic_dec(&qp->ctrl->hurried);
}

void vql_qpairs_end(struct vql_ctrl *ctrl, enum vql_qpair_state state)
{
	struct vql_qpair *qp;

	list_for_each_entry(qp, &ctrl->qpairs, list) qpair_end(qp, state);
}

void vql_qpairs_delete(struct vql_ctrl *ctrl)
{
	struct vql_qpair *qp;

	list_for_each_entry(qp, &ctrl->qpairs, list)
	{
		if (!vql_qpair_is_live(qp))
			continue;
		if (qpair_delete(qp))
			return;
		/* Who waits for its end is not to wait for what comes next: a cache may take long to write back. */
		qpair_end(qp, VQL_QPAIR_LOST);
	}
}

void vql_qpairs_free(struct vql_ctrl *ctrl)
{
	struct vql_qpair *qp, *next;

	list_for_each_entry_safe(qp, next, &ctrl->qpairs, list) qpair_free_memory(qp);
}

/* ---- the file ---- */

static long qpair_attach(struct vql_qpair *qp, struct vql_qpair_attach __user *arg)
{
	struct vql_qpair_attach req;
	int slot, err = vql_copy_in(&req, arg, sizeof(req));

	if (err)
		return err;
	if (req.reserved)
		return -EINVAL;
	/* Under ctrl->lock a live queue pair stays live: so memory is mapped for no dead device. */
	err = vql_ctrl_lock_live(qp->ctrl);
	/*
	 * Its end is near, since the controller is not LIVE any more, and is to be seen in its status before its holder
	 * does without the attachment.
	 */
	if (err == -EAGAIN || err == -ENODEV)
		err = wait_event_killable(qp->wait, READ_ONCE(qp->ended)) ?: -ENODEV;
	if (err)
		return err;
	slot = vql_qpair_is_live(qp) ? vql_attach(qp, req.mspace_fd, &req.pages) : -ENODEV;
	mutex_unlock(&qp->ctrl->lock);
	if (slot < 0)
		return slot;
	req.slot = (u32)slot;
	return copy_to_user(arg, &req, sizeof(req)) ? -EFAULT : 0;
}

static long qpair_detach(struct vql_qpair *qp, struct vql_qpair_detach __user *arg)
{
	struct vql_qpair_detach req;
	int err = vql_copy_in(&req, arg, sizeof(req));

	return err ? err : vql_detach(qp, req.slot);
}

static long qpair_abort(struct vql_qpair *qp, unsigned long cid)
{
	int err;

	if (cid > U16_MAX)
		return -EINVAL;
	if (mutex_lock_killable(&qp->ctrl->lock))
		return -EINTR;
	err = vql_qpair_is_live(qp) ? vql_admin_abort(qp->ctrl, qp->qid, (u16)cid) : -ENODEV;
	mutex_unlock(&qp->ctrl->lock);
	return err > 0 ? -EIO : err;
}

static long qpair_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vql_qpair *qp = file->private_data;
	void __user *ptr = (void __user *)arg;

	switch (cmd) {
	case VQL_IOC_QPAIR_ARM: return qpair_arm(qp);
	case VQL_IOC_QPAIR_ATTACH: return qpair_attach(qp, ptr);
	case VQL_IOC_QPAIR_DETACH: return qpair_detach(qp, ptr);
	case VQL_IOC_QPAIR_ABORT: return qpair_abort(qp, arg);
	default: return -ENOTTY;
	}
}

static __poll_t qpair_poll(struct file *file, poll_table *table)
{
	struct vql_qpair *qp = file->private_data;
	__poll_t mask = 0;

	poll_wait(file, &qp->wait, table);
	if (READ_ONCE(qp->fired))
		mask |= EPOLLIN | EPOLLRDNORM;
	if (!vql_qpair_is_live(qp))
		mask |= EPOLLHUP;
	return mask;
}

static int qpair_release(struct inode *inode, struct file *file)
{
	struct vql_qpair *qp = file->private_data;

	qpair_wait_killed(qp);
	/* Only now: no command is under way that could reach what is unmapped here. */
	vql_attach_drop_qpair(qp);
	mutex_lock(&vql_attach_lock);
	qp->mapping = NULL;
	mutex_unlock(&vql_attach_lock);
	mutex_lock(&qp->ctrl->lock);
	qpair_free_memory(qp);
	mutex_unlock(&qp->ctrl->lock);
	vql_qpair_put(qp);
	return 0;
}

static const struct file_operations qpair_fops = {
	.owner = THIS_MODULE,
	.release = qpair_release,
	.unlocked_ioctl = qpair_ioctl,
	.poll = qpair_poll,
	.mmap = vql_qpair_mmap,
};

static struct vql_qpair *qpair_alloc(struct vql_ctrl *ctrl, u32 depth, u32 pool_pages)
{
	struct vql_qpair *qp = kzalloc(sizeof(*qp), GFP_KERNEL);

	if (!qp)
		return NULL;
	qp->status = (struct vql_qpair_status *)get_zeroed_page(GFP_KERNEL);
	if (!qp->status) {
		kfree(qp);
		return NULL;
	}
	qp->status->state = VQL_QPAIR_LOST; /* until it is started */
	qp->ended = true;                   /* the same */
	qp->depth = depth;
	qp->pool_pages = pool_pages;
	kref_init(&qp->ref);
	vql_ctrl_get(ctrl);
	qp->ctrl = ctrl;
	INIT_LIST_HEAD(&qp->list);
	INIT_LIST_HEAD(&qp->attachments.list);
	mutex_init(&qp->irq_lock);
	init_waitqueue_head(&qp->wait);
	return qp;
}

static int create_validate(const struct vql_qpair_create *req)
{
	if (req->flags || req->reserved)
		return -EINVAL;
	if (req->depth < 2 || req->pool_pages > VQL_MAX_POOL_PAGES)
		return -EINVAL;
	return 0;
}

/* A file with an inode of its own, so that a zap finds the mappings of this queue pair alone. */
static struct file *qpair_file(struct vql_ctrl *ctrl, const struct vql_qpair_create *req)
{
	struct vql_qpair *qp = qpair_alloc(ctrl, req->depth, req->pool_pages);
	struct file *file;

	if (!qp)
		return ERR_PTR(-ENOMEM);
	file = anon_inode_create_getfile("[vqlane-qpair]", &qpair_fops, qp, O_RDWR | O_CLOEXEC,
					 NULL);
	if (IS_ERR(file))
		vql_qpair_put(qp);
	else
		qp->mapping = file->f_mapping;
	return file;
}

static void create_answer(const struct vql_qpair *qp, struct vql_qpair_create *req)
{
	u32 in_page = offset_in_page(qp->doorbell);

	req->qid = qp->qid;
	req->doorbell_stride = qp->ctrl->stride;
	req->sq_doorbell = in_page;
	req->has_interrupt = qp->irq ? 1 : 0;
	req->sq_shadow = qp->has_shadow ? qp->doorbell : 0;
	req->pool_dma = qp->pool.dma;
}

long vql_qpair_create(struct vql_ctrl *ctrl, struct vql_qpair_create __user *arg)
{
	struct vql_qpair_create req;
	struct vql_qpair *qp;
	struct file *file;
	int fd, err = vql_copy_in(&req, arg, sizeof(req));

	if (!err)
		err = create_validate(&req);
	if (err)
		return err;
	file = qpair_file(ctrl, &req);
	if (IS_ERR(file))
		return PTR_ERR(file);
	/* From here on it is the file's release that undoes. */
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		fput(file);
		return fd;
	}
	qp = file->private_data;
	err = vql_ctrl_lock_live(ctrl);
	if (!err) {
		err = qpair_start(qp);
		if (!err)
			create_answer(qp, &req);
		mutex_unlock(&ctrl->lock);
	}
	if (!err && copy_to_user(arg, &req, sizeof(req)))
		err = -EFAULT;
	if (err) {
		put_unused_fd(fd);
		fput(file);
		return err;
	}
	fd_install(fd, file);
	return fd;
}

/* ---- the module's own ---- */

struct vql_qpair *vql_qpair_open_locked(struct vql_ctrl *ctrl, u32 depth, u32 pool_pages,
					void *owner, irq_handler_t handler,
					void (*lost)(struct vql_qpair *))
{
	struct vql_qpair *qp;
	int err;

	/* As where there is no interrupt: pollers, which take what there is, serve the drive. */
	if (!vql_ctrl_usable(ctrl) && depth > ctrl->info.max_depth)
		return ERR_PTR(-EOPNOTSUPP);
	qp = qpair_alloc(ctrl, depth, pool_pages);
	if (!qp)
		return ERR_PTR(-ENOMEM);
	qp->owner = owner;
	qp->handler = handler;
	err = qpair_start(qp);
	if (!err && !qp->irq)
		err = -EOPNOTSUPP;
	if (err) {
		vql_qpair_close_locked(qp);
		return ERR_PTR(err);
	}
	qp->lost = lost; /* from now on */
	return qp;
}

void vql_qpair_close_locked(struct vql_qpair *qp)
{
	qpair_kill(qp);
	vql_attach_drop_qpair(qp);
	qpair_free_memory(qp);
	vql_qpair_put(qp);
}
