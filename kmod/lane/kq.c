// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module's own queue pairs on a controller, which all lanes share: queues are scarce, and a lane
 * that is idle needs none of its own. There are two, by kind: discards and write zeroes may take a drive
 * long, and neither has data to wait behind them, nor is it lost when they have to be given up.
 *
 *   kq      used by disks' configurations, the last of which ends it; there is at most one of a
 *           controller and kind, found by ctrl->kqs. The structure stays while one of its works is queued
 *   kq->qp  a queue pair without a file; replaced when it was lost
 *
 * A tag is a command's place: its identifier, and the page of the pool that its list is in. It is
 * reserved, then pushed (given to the controller) or cancelled, and free again when it has ended.
 *
 * Loss. When the controller can no longer do DMA for the queue pair (reset, unbind, deletion), qpair.c
 * calls kq_lost(), under ctrl->lock: no tag is reserved and none pushed after that, and what was
 * pushed ends as lost, from a worker, since that takes lanes' locks and wakes people. Those tags are not
 * free before, also when the next queue pair is. Reserving, writing
 * to the tag's page and pushing happen in one section with interrupts off, which is an RCU reader's:
 * after a grace period nobody touches the old queue pair's memory.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/slab.h>
#include "nvme/ctrl.h"
#include "lane/kq.h"

static unsigned int io_timeout_s = 30;
module_param(io_timeout_s, uint, 0644);
MODULE_PARM_DESC(
	io_timeout_s,
	"time a command of the kernel lane has until it is aborted, and until after that the "
	"controller is reset, s (default 30)");

const struct vql_kq_limits *vql_kq_limits(const struct vql_kq *kq) { return &kq->limits; }

struct vql_ctrl *vql_kq_ctrl(struct vql_kq *kq) { return kq->ctrl; }

void vql_kq_release(struct vql_kq *kq)
{
	if (!refcount_dec_and_test(&kq->refs))
		return;
	vql_ctrl_put(kq->ctrl);
	kfree(kq);
}

u16 vql_kq_qid(const struct vql_kq *kq) { return READ_ONCE(kq->qp)->qid; }

void *vql_kq_page(struct vql_kq *kq, u16 tag)
{
	return READ_ONCE(kq->qp)->pool.cpu + ((size_t)tag << VQL_NVME_PAGE_SHIFT);
}

u64 vql_kq_page_dma(struct vql_kq *kq, u16 tag)
{
	return READ_ONCE(kq->qp)->pool.dma + ((u64)tag << VQL_NVME_PAGE_SHIFT);
}

struct vql_nvme_sqe *vql_kq_sqe(struct vql_kq *kq, u16 tag) { return &kq->tags[tag].sqe; }

/* ---- the controller's side ---- */

void vql_kq_submit(struct vql_kq *kq, u16 tag)
{
	struct vql_nvme_sqe *sq = kq->qp->sq.cpu;
	struct kq_tag *t = &kq->tags[tag];

	lockdep_assert_held(&kq->lock);
	sq[kq->tail] = t->sqe;
	sq[kq->tail].cid = tag;
	kq->tail = kq->tail + 1 == KQ_DEPTH ? 0 : kq->tail + 1;
	t->pushed = true;
	t->aborted = t->failed = false;
	t->since = jiffies;
	if (!kq->watched) {
		kq->watched = true;
		refcount_inc(&kq->refs);
		queue_delayed_work(system_unbound_wq, &kq->watch, HZ);
	}
}

bool vql_kq_push(struct vql_kq *kq, u16 tag)
{
	bool live;

	spin_lock(&kq->lock);
	live = kq->live;
	if (live)
		vql_kq_submit(kq, tag);
	else
		vql_kq_free_tag(kq, tag);
	spin_unlock(&kq->lock);
	return live;
}

/*
 * Tell the controller that an index has moved from @old to @now (NVMe 2.0 §5.8; vql_nvme_ring() argues
 * the order). writel() orders what was written to memory before it.
 */
static void kq_doorbell(struct vql_qpair *qp, u32 which, u16 old, u16 now)
{
	struct vql_ctrl *ctrl = qp->ctrl;
	u32 at = qp->doorbell + which * ctrl->stride;

	if (qp->has_shadow) {
		u32 *shadow = ctrl->shadow.cpu + at;
		const u32 *event = ctrl->event_index.cpu + at;

		wmb();
		WRITE_ONCE(*shadow, now);
		mb();
		if (!vql_nvme_need_event((u16)READ_ONCE(*event), now, old))
			return;
	}
	writel(now, ctrl->bar + NVME_REG_DBS + at);
}

void vql_kq_ring_locked(struct vql_kq *kq)
{
	if (kq->live && kq->rung != kq->tail) {
		kq_doorbell(kq->qp, 0, kq->rung, kq->tail);
		kq->rung = kq->tail;
	}
}

void vql_kq_ring(struct vql_kq *kq)
{
	spin_lock(&kq->lock);
	vql_kq_ring_locked(kq);
	spin_unlock(&kq->lock);
}

/* Take completions, as many as @end has room for. Returns how many ended a command. */
static u32 kq_reap(struct vql_kq *kq, struct vql_lane_end *end)
{
	const struct vql_nvme_cqe *cq;
	struct vql_nvme_cqe cqe;
	u16 old = kq->head;
	u32 n = 0;

	lockdep_assert_held(&kq->lock);
	if (!kq->live)
		return 0;
	cq = kq->qp->cq.cpu;
	while (n < KQ_REAP && vql_nvme_cqe_take(&cq[kq->head], kq->phase, &cqe)) {
		if (++kq->head == KQ_DEPTH) {
			kq->head = 0;
			kq->phase ^= 1;
		}
		/* A controller may be wrong, too. */
		if (cqe.cid >= KQ_TAGS || !kq->tags[cqe.cid].pushed || kq->tags[cqe.cid].lost ||
		    kq->tags[cqe.cid].failed) {
			pr_warn_ratelimited("%s: completion of no command (identifier %u)\n",
					    vql_ctrl_name(kq->ctrl), cqe.cid);
			continue;
		}
		if (vql_nvme_status_code(&cqe) && vql_kq_fails_for_now(kq, &cqe))
			continue;
		end[n++] = (struct vql_lane_end){
			.lane = kq->tags[cqe.cid].lane,
			.head = kq->tags[cqe.cid].head,
			/* The queue pair is just being deleted: over, but not done. */
			.status = vql_nvme_status_code(&cqe) == VQL_NVME_SC_SQ_DELETED
					  ? VQL_LANE_LOST
					  : vql_nvme_status(&cqe),
			.nvme = (u16)vql_nvme_status_code(&cqe),
		};
		vql_kq_free_tag(kq, cqe.cid);
	}
	if (kq->head != old)
		kq_doorbell(kq->qp, 1, old, kq->head);
	if (n)
		vql_kq_wake_line(kq);
	return n;
}

/* The queue pair's interrupt. It is freed before the queue pair is, so @kq is there. */
static irqreturn_t kq_irq(int irq, void *data)
{
	struct vql_qpair *qp = data;
	struct vql_kq *kq = qp->owner;
	struct vql_lane_end end[KQ_REAP];
	unsigned long flags;
	u32 n;

	do {
		spin_lock_irqsave(&kq->lock, flags);
		n = kq_reap(kq, end);
		spin_unlock_irqrestore(&kq->lock, flags);
		vql_lane_ended(end, n);
	} while (n == KQ_REAP);
	return IRQ_HANDLED;
}

/* ---- loss ---- */

/* qpair.c: under ctrl->lock, with the interrupt freed. */
static void kq_lost(struct vql_qpair *qp)
{
	struct vql_kq *kq = qp->owner;
	unsigned long flags;
	u16 tag;

	spin_lock_irqsave(&kq->lock, flags);
	kq->live = false;
	for (tag = 0; tag < KQ_TAGS; tag++)
		kq->tags[tag].lost = kq->tags[tag].pushed;
	spin_unlock_irqrestore(&kq->lock, flags);
	synchronize_rcu();
	refcount_inc(&kq->refs);
	if (!queue_work(system_unbound_wq, &kq->lost_work))
		vql_kq_release(kq);
}

static u32 kq_collect_lost(struct vql_kq *kq, struct vql_lane_end *end)
{
	u32 n = 0;
	u16 tag;

	spin_lock_irq(&kq->lock);
	for (tag = 0; tag < KQ_TAGS && n < KQ_REAP; tag++) {
		if (!kq->tags[tag].lost)
			continue;
		end[n++] = (struct vql_lane_end){
			.lane = kq->tags[tag].lane,
			.head = kq->tags[tag].head,
			.status = VQL_LANE_LOST,
		};
		vql_kq_free_tag(kq, tag);
	}
	vql_kq_wake_line(kq);
	spin_unlock_irq(&kq->lock);
	return n;
}

static void kq_lost_work(struct work_struct *work)
{
	struct vql_kq *kq = container_of(work, struct vql_kq, lost_work);
	struct vql_lane_end end[KQ_REAP];
	u32 n;

	do {
		n = kq_collect_lost(kq, end);
		vql_lane_ended(end, n);
	} while (n);
	vql_kq_release(kq);
}

/* ---- a command that takes too long ---- */

/* A command that is overdue. */
struct overdue {
	int tag; /* -1: none is */
	u32 number;
	unsigned long since;
	bool aborted;
};

/* The first one; it counts as aborted from now on. */
static struct overdue kq_overdue(struct vql_kq *kq, bool *any)
{
	unsigned long limit = (unsigned long)READ_ONCE(io_timeout_s) * HZ;
	bool aborted;
	int tag;

	*any = false;
	for (tag = 0; tag < KQ_TAGS; tag++) {
		struct kq_tag *t = &kq->tags[tag];

		if (!t->pushed || t->lost || t->failed)
			continue;
		*any = true;
		aborted = t->aborted;
		if (time_before(jiffies, t->since + limit * (aborted ? 2 : 1)))
			continue;
		t->aborted = true;
		return (struct overdue){tag, kq->number, t->since, aborted};
	}
	return (struct overdue){.tag = -1};
}

/*
 * Is it still? Who had ctrl->lock until now may have waited for the same drive as the command did, and the tag be
 * somebody else's since: one that is as old as that is still the same.
 */
static bool kq_is_overdue(struct vql_kq *kq, const struct overdue *o)
{
	const struct kq_tag *t = &kq->tags[o->tag];
	bool is;

	spin_lock_irq(&kq->lock);
	is = kq->live && kq->number == o->number && t->pushed && !t->lost && !t->failed &&
	     t->since == o->since;
	spin_unlock_irq(&kq->lock);
	return is;
}

/* Abort (NVMe 2.0 §5.1), and when that does not help, reset. */
static void kq_help(struct vql_kq *kq, const struct overdue *o)
{
	struct vql_ctrl *ctrl = kq->ctrl;

	mutex_lock(&ctrl->lock);
	if (kq->qp && vql_qpair_is_live(kq->qp) && kq_is_overdue(kq, o)) {
		vql_ctrl_warn(ctrl, "command %d of the kernel lane is overdue: %s\n", o->tag,
			      o->aborted ? "the controller is reset" : "aborted");
		if (o->aborted)
			vql_ctrl_reset(ctrl);
		else
			vql_admin_abort(ctrl, kq->qp->qid, (u16)o->tag);
	}
	mutex_unlock(&ctrl->lock);
}

/* Once a second while anything is under way. */
static void kq_watch(struct work_struct *work)
{
	struct vql_kq *kq = container_of(to_delayed_work(work), struct vql_kq, watch);
	struct overdue o;
	bool any;

	spin_lock_irq(&kq->lock);
	o = kq_overdue(kq, &any);
	kq->watched = any;
	if (any)
		queue_delayed_work(system_unbound_wq, &kq->watch, HZ);
	spin_unlock_irq(&kq->lock);
	if (o.tag >= 0)
		kq_help(kq, &o);
	if (!any)
		vql_kq_release(kq);
}

/* ---- life ---- */

static void kq_set_qpair(struct vql_kq *kq, struct vql_qpair *qp)
{
	lockdep_assert_held(&kq->ctrl->lock);
	spin_lock_irq(&kq->lock);
	WRITE_ONCE(kq->qp, qp);
	spin_unlock_irq(&kq->lock);
}

/* A reference, or NULL. */
static struct vql_qpair *kq_get_qpair(struct vql_kq *kq)
{
	struct vql_qpair *qp;

	spin_lock_irq(&kq->lock);
	qp = kq->qp;
	if (qp)
		vql_qpair_get(qp);
	spin_unlock_irq(&kq->lock);
	return qp;
}

static void kq_set_limits(struct vql_kq *kq)
{
	const struct vql_ctrl_info *info = &kq->ctrl->info;

	kq->limits = (struct vql_kq_limits){
		.most = vql_nvme_limits_of(info->max_transfer, info->wzsl, info->dmrsl, info->dmsl),
		.crdt = {info->crdt[0], info->crdt[1], info->crdt[2]},
		/* Bits 1:0 are 1: of any alignment and granularity (NVMe 2.0 figure 275). */
		.sgl = (info->sgls & 3) == 1,
		.volatile_cache = info->volatile_cache,
		.write_zeroes = info->oncs & NVME_CTRL_ONCS_WRITE_ZEROES,
		.discard = info->oncs & NVME_CTRL_ONCS_DSM,
	};
}

/* Under ctrl->lock. */
static int kq_start(struct vql_kq *kq)
{
	struct vql_qpair *qp;
	unsigned long flags;

	lockdep_assert_held(&kq->ctrl->lock);
	if (kq->qp) {
		if (vql_qpair_is_live(kq->qp))
			return 0;
		/* Of the lost one nobody knows any more (see the head of this file). */
		qp = kq->qp;
		kq_set_qpair(kq, NULL);
		vql_qpair_close_locked(qp);
	}
	kq_set_limits(kq);
	qp = vql_qpair_open_locked(kq->ctrl, KQ_DEPTH, KQ_DEPTH, kq, kq_irq, kq_lost);
	if (IS_ERR(qp))
		return PTR_ERR(qp);
	spin_lock_irqsave(&kq->lock, flags);
	WRITE_ONCE(kq->qp, qp);
	kq->tail = kq->rung = kq->head = 0;
	kq->phase = 1;
	kq->number++;
	kq->live = true;
	spin_unlock_irqrestore(&kq->lock, flags);
	return 0;
}

int vql_kq_revive(struct vql_kq *kq)
{
	int err = vql_ctrl_lock_hurried(kq->ctrl);

	if (err)
		return err;
	err = kq_start(kq);
	vql_ctrl_unlock_hurried(kq->ctrl);
	return err;
}

static struct vql_kq *kq_create(struct vql_ctrl *ctrl, enum vql_kq_kind kind)
{
	struct vql_kq *kq = kzalloc(sizeof(*kq), GFP_KERNEL);
	int err;

	if (!kq)
		return ERR_PTR(-ENOMEM);
	refcount_set(&kq->refs, 1);
	spin_lock_init(&kq->lock);
	INIT_LIST_HEAD(&kq->line);
	INIT_DELAYED_WORK(&kq->watch, kq_watch);
	INIT_DELAYED_WORK(&kq->retry, vql_kq_retry);
	INIT_WORK(&kq->lost_work, kq_lost_work);
	vql_ctrl_get(ctrl);
	kq->ctrl = ctrl;
	kq->kind = kind;
	vql_kq_free_all_tags(kq);
	err = kq_start(kq);
	if (err) {
		vql_kq_release(kq);
		return ERR_PTR(err);
	}
	kq->users = 1;
	ctrl->kqs[kind] = kq;
	return kq;
}

struct vql_kq *vql_kq_get(struct vql_ctrl *ctrl, enum vql_kq_kind kind)
{
	struct vql_kq *kq;
	int err = vql_ctrl_lock_live(ctrl);

	if (err)
		return ERR_PTR(err);
	kq = ctrl->kqs[kind];
	if (kq)
		kq->users++;
	else
		kq = kq_create(ctrl, kind);
	mutex_unlock(&ctrl->lock);
	return kq;
}

void vql_kq_put(struct vql_kq *kq)
{
	struct vql_ctrl *ctrl = kq->ctrl;

	mutex_lock(&ctrl->lock);
	if (--kq->users) {
		mutex_unlock(&ctrl->lock);
		return;
	}
	ctrl->kqs[kq->kind] = NULL;
	if (kq->qp)
		vql_qpair_close_locked(kq->qp);
	/* After its end, for its interrupt uses it; and nobody else has the kq. */
	kq_set_qpair(kq, NULL);
	mutex_unlock(&ctrl->lock);
	/* Nothing is under way without users, so there is nothing to watch; but it may be waiting. */
	if (cancel_delayed_work_sync(&kq->watch))
		vql_kq_release(kq);
	if (cancel_delayed_work_sync(&kq->retry))
		vql_kq_release(kq);
	/* The module may be removed once nobody has a kq. */
	flush_work(&kq->lost_work);
	vql_kq_release(kq);
}

int vql_kq_attach(struct vql_kq *kq, struct vql_mspace *ms, u64 *dma, u32 *qpair)
{
	int err = vql_ctrl_lock_hurried(kq->ctrl);

	if (err)
		return err;
	err = -EAGAIN; /* it was lost since vql_kq_revive() */
	/* Under ctrl->lock a live queue pair stays live: so memory is mapped for no dead device. */
	if (kq->qp && vql_qpair_is_live(kq->qp))
		err = vql_kq_has_data(kq) ? vql_attach_own(kq->qp, ms, dma) : 0;
	*qpair = kq->number; /* which changes under ctrl->lock alone */
	vql_ctrl_unlock_hurried(kq->ctrl);
	return err;
}

/* What a discard and a write of zeroes say is in the command, or in the page of its tag. */
bool vql_kq_has_data(const struct vql_kq *kq) { return kq->kind == VQL_KQ_FAST; }

bool vql_kq_has(struct vql_kq *kq, u32 qpair)
{
	unsigned long flags;
	bool has;

	spin_lock_irqsave(&kq->lock, flags);
	has = kq->live && kq->number == qpair;
	spin_unlock_irqrestore(&kq->lock, flags);
	return has;
}

static bool kq_has_commands_of(struct vql_kq *kq, const struct vql_lane *lane)
{
	bool has = false;
	u16 tag;

	spin_lock_irq(&kq->lock);
	for (tag = 0; tag < KQ_TAGS && !has; tag++)
		has = kq->tags[tag].lane == lane;
	spin_unlock_irq(&kq->lock);
	return has;
}

void vql_kq_abandon(struct vql_kq *kq, const struct vql_lane *lane)
{
	struct vql_qpair *qp;

	if (!kq_has_commands_of(kq, lane))
		return;
	qp = kq_get_qpair(kq);
	if (qp) {
		vql_qpair_kill(qp);
		vql_qpair_put(qp);
	}
	flush_work(&kq->lost_work);
}

/*
 * Without ctrl->lock, which may be held for minutes. A queue pair that is replaced meanwhile is lost: then its interrupt
 * was freed, which waits for the handler as well.
 */
void vql_kq_synchronize(struct vql_kq *kq)
{
	struct vql_qpair *qp = kq_get_qpair(kq);

	if (qp) {
		vql_qpair_synchronize(qp);
		vql_qpair_put(qp);
	}
	flush_work(&kq->lost_work);
}
