// SPDX-License-Identifier: GPL-2.0-only
/*
 * The module's own queue pair on a controller, which all lanes share: queues are scarce, and a lane
 * that is idle needs none of its own.
 *
 *   kq      used by disks' configurations, the last of which ends it; there is at most one of a
 *           controller, found by ctrl->kq. The structure stays while one of its works is queued
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
#include "ctrl.h"
#include "lane.h"

enum {
	KQ_DEPTH = 128,
	KQ_TAGS = KQ_DEPTH - 1, /* one entry of a queue stays empty (NVMe 2.0 §3.3.1.5) */
	KQ_REAP = 32,           /* completions taken under one hold of the lock */
};

static_assert(KQ_TAGS >= 2 * VQL_LANE_PARTS, "a lane is woken when others give back (wake_line)");

static unsigned int io_timeout_s = 30;
module_param(io_timeout_s, uint, 0644);
MODULE_PARM_DESC(
	io_timeout_s,
	"time a command of the kernel lane has until it is aborted, and until after that the "
	"controller is reset, s (default 30)");

/*
 * Of kq->line and lane->waiting, of all: a lane may use several controllers, and wait for one of them. Inside
 * kq->lock, leaf.
 */
static DEFINE_SPINLOCK(line_lock);

struct kq_tag {
	struct vql_lane *lane; /* NULL: free */
	u16 head;
	bool pushed;
	bool aborted;
	bool lost;           /* with its queue pair: it waits for lost_work, whatever comes after */
	unsigned long since; /* jiffies, when pushed */
};

struct vql_kq {
	refcount_t refs;       /* of the structure */
	u32 users;             /* under ctrl->lock */
	struct vql_ctrl *ctrl; /* a reference */
	struct vql_kq_limits limits;
	struct vql_qpair *qp; /* under ctrl->lock; read in sections that kq_lost() waits for */

	spinlock_t lock; /* irqs off */
	bool live;
	u32 number; /* of this queue pair: counts them */
	bool watched;
	u16 tail;
	u16 rung; /* tail as the controller was told last */
	u16 head;
	u8 phase;
	u16 nfree;
	u16 free[KQ_TAGS];
	struct kq_tag tags[KQ_TAGS];
	struct list_head line; /* lanes that wait for a tag; under line_lock */

	struct delayed_work watch;
	struct work_struct lost_work;
};

const struct vql_kq_limits *vql_kq_limits(const struct vql_kq *kq) { return &kq->limits; }

struct vql_ctrl *vql_kq_ctrl(struct vql_kq *kq) { return kq->ctrl; }

/* ---- tags ---- */

static void free_tag(struct vql_kq *kq, u16 tag)
{
	kq->tags[tag].lane = NULL;
	kq->tags[tag].pushed = kq->tags[tag].lost = false;
	kq->free[kq->nfree++] = tag;
}

static void free_all_tags(struct vql_kq *kq)
{
	u16 tag;

	kq->nfree = 0;
	for (tag = KQ_TAGS; tag--;)
		free_tag(kq, tag);
}

/*
 * Tags were freed. Those who may have enough now are woken, but for @except: who finds none waits again. To wake those
 * who cannot have enough would have them try in turns, for nothing: each takes what the other gives back.
 *
 * Nobody is forgotten, though whoever gives its own tags back is not woken by that. A lane that finds none holds less
 * than VQL_LANE_PARTS itself; all others, more than that, are with the controller or with lanes that give them back or
 * push them. Each of these comes by here when it is freed, and at the latest the last one finds enough free.
 */
static void wake_line(struct vql_kq *kq, const struct vql_lane *except)
{
	struct vql_lane *lane, *next;

	spin_lock(&line_lock);
	list_for_each_entry_safe(lane, next, &kq->line, waiting)
	{
		/* Of a lost queue pair all are to hear. */
		if (lane == except || (kq->live && lane->needs > kq->nfree))
			continue;
		list_del_init(&lane->waiting);
		vql_lane_wake(lane);
	}
	spin_unlock(&line_lock);
}

/* How many tags of @kq the request needs at least for which @lane finds none now. */
static u32 needs(const struct vql_kq *kq, const struct vql_lane *lane)
{
	const struct vql_lane_scratch *s = lane->scratch;
	u32 i, n = 1;

	for (i = 0; i < s->nparts; i++)
		n += s->parts[i].kq == kq;
	return n;
}

int vql_kq_reserve(struct vql_kq *kq, struct vql_lane *lane, u16 head, u32 qpair)
{
	int tag = -EAGAIN;

	lockdep_assert_irqs_disabled();
	spin_lock(&kq->lock);
	/* The lane may not have noticed yet that there is another one, which has other lanes' memory alone. */
	if (!kq->live || kq->number != qpair) {
		tag = -ENODEV;
	} else if (kq->nfree) {
		tag = kq->free[--kq->nfree];
		kq->tags[tag].lane = lane;
		kq->tags[tag].head = head;
	} else {
		spin_lock(&line_lock);
		lane->needs = needs(kq, lane);
		list_move_tail(&lane->waiting, &kq->line); /* from another one's, perhaps */
		spin_unlock(&line_lock);
	}
	spin_unlock(&kq->lock);
	return tag;
}

/*
 * Two lanes may each have what the other needs, both give it back, and both wait: so the others are
 * woken; but not the lane itself, which would try again and again.
 */
void vql_kq_cancel(struct vql_kq *kq, u16 tag)
{
	const struct vql_lane *lane = kq->tags[tag].lane;

	spin_lock(&kq->lock);
	free_tag(kq, tag);
	wake_line(kq, lane);
	spin_unlock(&kq->lock);
}

void vql_kq_leave_line(struct vql_lane *lane)
{
	unsigned long flags;

	spin_lock_irqsave(&line_lock, flags);
	list_del_init(&lane->waiting);
	spin_unlock_irqrestore(&line_lock, flags);
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

/* ---- the controller's side ---- */

bool vql_kq_push(struct vql_kq *kq, u16 tag, const struct vql_nvme_sqe *sqe)
{
	struct vql_nvme_sqe *sq;
	bool live;

	spin_lock(&kq->lock);
	live = kq->live;
	if (live) {
		sq = kq->qp->sq.cpu;
		sq[kq->tail] = *sqe;
		sq[kq->tail].cid = tag;
		kq->tail = kq->tail + 1 == KQ_DEPTH ? 0 : kq->tail + 1;
		kq->tags[tag].pushed = true;
		kq->tags[tag].aborted = false;
		kq->tags[tag].since = jiffies;
		if (!kq->watched) {
			kq->watched = true;
			refcount_inc(&kq->refs);
			queue_delayed_work(system_unbound_wq, &kq->watch, HZ);
		}
	} else {
		free_tag(kq, tag);
	}
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

void vql_kq_ring(struct vql_kq *kq)
{
	spin_lock(&kq->lock);
	if (kq->live && kq->rung != kq->tail) {
		kq_doorbell(kq->qp, 0, kq->rung, kq->tail);
		kq->rung = kq->tail;
	}
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
		if (cqe.cid >= KQ_TAGS || !kq->tags[cqe.cid].pushed || kq->tags[cqe.cid].lost) {
			pr_warn_ratelimited("%s: completion of no command (identifier %u)\n",
					    vql_ctrl_name(kq->ctrl), cqe.cid);
			continue;
		}
		end[n++] = (struct vql_lane_end){
			.lane = kq->tags[cqe.cid].lane,
			.head = kq->tags[cqe.cid].head,
			/* The queue pair is just being deleted: over, but not done. */
			.status = vql_nvme_status_code(&cqe) == VQL_NVME_SC_SQ_DELETED
					  ? VQL_LANE_LOST
					  : vql_nvme_status(&cqe),
			.nvme = (u16)vql_nvme_status_code(&cqe),
		};
		free_tag(kq, cqe.cid);
	}
	if (kq->head != old)
		kq_doorbell(kq->qp, 1, old, kq->head);
	if (n)
		wake_line(kq, NULL);
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

static void kq_release(struct vql_kq *kq)
{
	if (!refcount_dec_and_test(&kq->refs))
		return;
	vql_ctrl_put(kq->ctrl);
	kfree(kq);
}

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
		kq_release(kq);
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
		free_tag(kq, tag);
	}
	wake_line(kq, NULL);
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
	kq_release(kq);
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

		if (!t->pushed || t->lost)
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
	is = kq->live && kq->number == o->number && t->pushed && !t->lost && t->since == o->since;
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
		kq_release(kq);
}

/* ---- life ---- */

static void kq_set_limits(struct vql_kq *kq)
{
	const struct vql_ctrl_info *info = &kq->ctrl->info;

	kq->limits = (struct vql_kq_limits){
		.max_transfer = info->max_transfer,
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
		vql_qpair_close_locked(kq->qp);
		WRITE_ONCE(kq->qp, NULL);
	}
	kq_set_limits(kq);
	qp = vql_qpair_open_locked(kq->ctrl, KQ_DEPTH, KQ_DEPTH, kq, kq_irq, kq_lost);
	if (IS_ERR(qp))
		return PTR_ERR(qp);
	WRITE_ONCE(kq->qp, qp);
	spin_lock_irqsave(&kq->lock, flags);
	kq->tail = kq->rung = kq->head = 0;
	kq->phase = 1;
	kq->number++;
	kq->live = true;
	spin_unlock_irqrestore(&kq->lock, flags);
	return 0;
}

int vql_kq_revive(struct vql_kq *kq)
{
	int err;

	mutex_lock(&kq->ctrl->lock);
	err = kq_start(kq);
	mutex_unlock(&kq->ctrl->lock);
	return err;
}

static struct vql_kq *kq_create(struct vql_ctrl *ctrl)
{
	struct vql_kq *kq = kzalloc(sizeof(*kq), GFP_KERNEL);
	int err;

	if (!kq)
		return ERR_PTR(-ENOMEM);
	refcount_set(&kq->refs, 1);
	spin_lock_init(&kq->lock);
	INIT_LIST_HEAD(&kq->line);
	INIT_DELAYED_WORK(&kq->watch, kq_watch);
	INIT_WORK(&kq->lost_work, kq_lost_work);
	vql_ctrl_get(ctrl);
	kq->ctrl = ctrl;
	free_all_tags(kq);
	err = kq_start(kq);
	if (err) {
		kq_release(kq);
		return ERR_PTR(err);
	}
	kq->users = 1;
	ctrl->kq = kq;
	return kq;
}

struct vql_kq *vql_kq_get(struct vql_ctrl *ctrl)
{
	struct vql_kq *kq;

	mutex_lock(&ctrl->lock);
	kq = ctrl->kq;
	if (kq)
		kq->users++;
	else
		kq = kq_create(ctrl);
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
	ctrl->kq = NULL;
	if (kq->qp)
		vql_qpair_close_locked(kq->qp);
	kq->qp = NULL;
	mutex_unlock(&ctrl->lock);
	/* Nothing is under way without users, so there is nothing to watch; but it may be waiting. */
	if (cancel_delayed_work_sync(&kq->watch))
		kq_release(kq);
	/* The module may be removed once nobody has a kq. */
	flush_work(&kq->lost_work);
	kq_release(kq);
}

int vql_kq_attach(struct vql_kq *kq, struct vql_mspace *ms, u64 *dma, u32 *qpair)
{
	int err = -ENODEV;

	mutex_lock(&kq->ctrl->lock);
	/* Under ctrl->lock a live queue pair stays live: so memory is mapped for no dead device. */
	if (kq->qp && vql_qpair_is_live(kq->qp))
		err = vql_attach_own(kq->qp, ms, dma);
	*qpair = kq->number; /* which changes under ctrl->lock alone */
	mutex_unlock(&kq->ctrl->lock);
	return err;
}

bool vql_kq_has(struct vql_kq *kq, u32 qpair)
{
	unsigned long flags;
	bool has;

	spin_lock_irqsave(&kq->lock, flags);
	has = kq->live && kq->number == qpair;
	spin_unlock_irqrestore(&kq->lock, flags);
	return has;
}

void vql_kq_abandon(struct vql_kq *kq)
{
	struct vql_qpair *qp;

	mutex_lock(&kq->ctrl->lock);
	qp = kq->qp;
	if (qp)
		vql_qpair_get(qp);
	mutex_unlock(&kq->ctrl->lock);
	if (qp) {
		vql_qpair_kill(qp);
		vql_qpair_put(qp);
	}
	flush_work(&kq->lost_work);
}

void vql_kq_synchronize(struct vql_kq *kq)
{
	mutex_lock(&kq->ctrl->lock);
	if (kq->qp && kq->qp->irq)
		synchronize_irq((unsigned int)kq->qp->irq);
	mutex_unlock(&kq->ctrl->lock);
	flush_work(&kq->lost_work);
}
