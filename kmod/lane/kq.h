/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What kq.c (a queue pair of the module's own) and kq_tags.c (who gets its commands) and kq_retry.c
 * (commands that have failed for now) share.
 */
#ifndef _VQLANE_KMOD_KQ_H
#define _VQLANE_KMOD_KQ_H

#include <linux/refcount.h>
#include <linux/workqueue.h>
#include "lane/lane.h"

enum {
	KQ_DEPTH = 128,
	KQ_TAGS = KQ_DEPTH - 1, /* one entry of a queue stays empty (NVMe 2.0 §3.3.1.5) */
	KQ_REAP = 32,           /* completions taken under one hold of the lock */
};

static_assert(KQ_TAGS >= 2 * VQL_LANE_PARTS, "a share leaves something for others (share_of)");

struct kq_tag {
	struct vql_lane *lane; /* NULL: free */
	u32 *held; /* the count of its disk's that it is in: there while the lane is not OFF */
	u16 head;
	bool pushed;
	bool aborted;
	bool lost;   /* with its queue pair: it waits for lost_work, whatever comes after */
	bool failed; /* for now: pushed, but with the controller no more until it is due */
	u8 retries;
	unsigned long since; /* jiffies, when pushed; failed: when it is due again */
	struct vql_nvme_sqe sqe;
};

struct vql_kq {
	refcount_t refs; /* of the structure */
	u32 users;       /* under ctrl->lock */
	enum vql_kq_kind kind;
	struct vql_ctrl *ctrl; /* a reference */
	struct vql_kq_limits limits;
	/*
	 * Changed under ctrl->lock and lock; read under either, and in sections that kq_lost() waits for. Who has no
	 * more than lock takes a reference.
	 */
	struct vql_qpair *qp;

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
	u32 disks;             /* that have tags */
	struct list_head line; /* lanes that wait for tags, the first one first */

	bool retrying; /* retry is to come, at retry_at (jiffies) */
	unsigned long retry_at;

	struct delayed_work watch;
	struct delayed_work retry;
	struct work_struct lost_work;
};

/* ---- kq_tags.c: all under kq->lock ---- */

void vql_kq_free_tag(struct vql_kq *kq, u16 tag);
void vql_kq_free_all_tags(struct vql_kq *kq);
/*
 * Tags were freed, or one has left the line. The first who has enough now is woken: it tries, and the next one is woken
 * when it leaves the line. Those before it wait for tags that others give back, and then this is called again.
 */
void vql_kq_wake_line(struct vql_kq *kq);

/* ---- kq.c ---- */

/* The last reference's end is the structure's. */
void vql_kq_release(struct vql_kq *kq);
/*
 * Under kq->lock: into the submission queue of a live queue pair, where as many commands fit as there are tags; and
 * tell the controller of all that are there.
 */
void vql_kq_submit(struct vql_kq *kq, u16 tag);
void vql_kq_ring_locked(struct vql_kq *kq);

/* ---- kq_retry.c ---- */

/*
 * Under kq->lock. Is the command @cqe of, which has ended with an error, to be submitted again? Then it keeps its tag,
 * and so its list and its place in its request, which keeps the lane, and the guest's memory, where they are.
 */
bool vql_kq_fails_for_now(struct vql_kq *kq, const struct vql_nvme_cqe *cqe);
void vql_kq_retry(struct work_struct *work);

#endif
