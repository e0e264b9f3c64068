/* SPDX-License-Identifier: GPL-2.0-only */
/* What kq.c (a queue pair of the module's own) and kq_tags.c (who gets its commands) share. */
#ifndef _VQLANE_KMOD_KQ_H
#define _VQLANE_KMOD_KQ_H

#include "lane.h"

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
	bool lost;           /* with its queue pair: it waits for lost_work, whatever comes after */
	unsigned long since; /* jiffies, when pushed */
};

struct vql_kq {
	refcount_t refs; /* of the structure */
	u32 users;       /* under ctrl->lock */
	enum vql_kq_kind kind;
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
	u32 disks;             /* that have tags */
	struct list_head line; /* lanes that wait for tags, the first one first */

	struct delayed_work watch;
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

#endif
