// SPDX-License-Identifier: GPL-2.0-only
/*
 * Commands of the kernel lane that have failed for now: they wait for their time, and are submitted again as they are.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/jiffies.h>
#include "lane/kq.h"

/* Have vql_kq_retry() run at @due, or sooner. With a reference on @kq while it is queued. */
static void retry_at(struct vql_kq *kq, unsigned long due)
{
	unsigned long now = jiffies;

	lockdep_assert_held(&kq->lock);
	if (kq->retrying && !time_before(due, kq->retry_at))
		return;
	kq->retrying = true;
	kq->retry_at = due;
	if (!mod_delayed_work(system_unbound_wq, &kq->retry, time_after(due, now) ? due - now : 0))
		refcount_inc(&kq->refs);
}

bool vql_kq_fails_for_now(struct vql_kq *kq, const struct vql_nvme_cqe *cqe)
{
	struct kq_tag *t = &kq->tags[cqe->cid];
	int ms;

	/* The queue pair is just being deleted: kq_lost() comes. */
	if (vql_nvme_status_code(cqe) == VQL_NVME_SC_SQ_DELETED)
		return false;
	ms = vql_nvme_retry_ms(cqe->status >> 1, t->retries, t->aborted, kq->limits.crdt);
	if (ms < 0)
		return false;
	t->failed = true;
	t->since = jiffies + msecs_to_jiffies((unsigned int)ms);
	retry_at(kq, t->since);
	return true;
}

void vql_kq_retry(struct work_struct *work)
{
	struct vql_kq *kq = container_of(to_delayed_work(work), struct vql_kq, retry);
	u16 tag;

	spin_lock_irq(&kq->lock);
	kq->retrying = false;
	for (tag = 0; tag < KQ_TAGS && kq->live; tag++) {
		struct kq_tag *t = &kq->tags[tag];

		if (!t->failed || t->lost)
			continue;
		if (time_before(jiffies, t->since)) {
			retry_at(kq, t->since);
			continue;
		}
		t->retries++;
		vql_kq_submit(kq, tag);
	}
	vql_kq_ring_locked(kq);
	spin_unlock_irq(&kq->lock);
	vql_kq_release(kq);
}
