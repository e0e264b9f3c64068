// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who gets a queue pair's commands, which all lanes of all disks on a controller share.
 *
 * A disk has no more tags than share_of() says, so that others find some. Lanes that find none, or have their
 * share, are in one line: nobody takes a tag before those who came earlier, but for those who wait for what their own
 * disk has (may_take()). A lane keeps its place until it has all tags that its request needs, or does not want them any
 * more (vql_kq_leave_line()). So each comes to its turn: who is first and waits for nobody of his own disk finds tags
 * free sooner or later, since others take none; who waits for his own disk's has others of it behind him.
 *
 * The line is changed under kq->lock, and by a lane under its own lock, so that a lane knows whether it is in one.
 */
#include "lane/kq.h"

void vql_kq_free_tag(struct vql_kq *kq, u16 tag)
{
	struct kq_tag *t = &kq->tags[tag];

	if (t->held && !--*t->held)
		kq->disks--;
	t->held = NULL;
	t->lane = NULL;
	t->pushed = t->lost = t->failed = false;
	t->retries = 0;
	kq->free[kq->nfree++] = tag;
}

void vql_kq_free_all_tags(struct vql_kq *kq)
{
	u16 tag;

	kq->nfree = 0;
	for (tag = KQ_TAGS; tag--;)
		vql_kq_free_tag(kq, tag);
}

/*
 * The most tags that a disk may have, of those that have some: enough for any request, and of data commands as many as
 * are left to the next one that comes.
 */
static u32 share_of(const struct vql_kq *kq)
{
	if (kq->kind == VQL_KQ_SLOW)
		return VQL_LANE_PARTS;
	return max_t(u32, KQ_TAGS / (1 + max(kq->disks, 1u)), VQL_LANE_PARTS);
}

static u32 *held_by(const struct vql_lane *lane, u32 at) { return &lane->config->held[at]; }

/* Does @lane, in line, wait for what its own disk has? */
static bool waits_for_own(const struct vql_kq *kq, const struct vql_lane *lane)
{
	return *held_by(lane, lane->line_at) + lane->needs > share_of(kq);
}

/* Is there a tag for @lane, and nobody before it in line? */
static bool may_take(const struct vql_kq *kq, const struct vql_lane *lane, const u32 *held)
{
	const struct vql_lane *other;
	bool may = true;

	if (!kq->nfree || *held >= share_of(kq))
		return false;
	list_for_each_entry(other, &kq->line, waiting)
	{
		if (other == lane)
			break;
		if (held_by(other, other->line_at) != held && waits_for_own(kq, other))
			continue;
		may = false;
		break;
	}
	return may;
}

void vql_kq_wake_line(struct vql_kq *kq)
{
	struct vql_lane *lane;

	list_for_each_entry(lane, &kq->line, waiting)
	{
		/* Of a lost queue pair all are to hear. */
		if (!kq->live) {
			vql_lane_wake(lane);
			continue;
		}
		if (waits_for_own(kq, lane))
			continue;
		if (lane->needs <= kq->nfree)
			vql_lane_wake(lane);
		break;
	}
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

/* Under kq->lock. Who is in line keeps its place. */
static void enter_line(struct vql_kq *kq, struct vql_lane *lane, u32 at)
{
	lane->needs = needs(kq, lane);
	lane->line_at = at;
	if (list_empty(&lane->waiting))
		list_add_tail(&lane->waiting, &kq->line);
}

int vql_kq_reserve(struct vql_lane *lane, u32 at, u16 head)
{
	struct vql_kq *kq = lane->config->kqs[at];
	u32 *held = held_by(lane, at);
	int tag = -EAGAIN;

	lockdep_assert_irqs_disabled();
	if (!list_empty(&lane->waiting) && lane->line_at != at)
		vql_kq_leave_line(lane); /* it has what it waited for, and lacks another */
	spin_lock(&kq->lock);
	/* The lane may not have noticed yet that there is another one, which has other lanes' memory alone. */
	if (!kq->live || kq->number != lane->dma[at].qpair) {
		tag = -ENODEV;
	} else if (may_take(kq, lane, held)) {
		tag = kq->free[--kq->nfree];
		kq->tags[tag].lane = lane;
		kq->tags[tag].head = head;
		kq->tags[tag].held = held;
		if (!(*held)++)
			kq->disks++;
	} else {
		enter_line(kq, lane, at);
	}
	spin_unlock(&kq->lock);
	return tag;
}

void vql_kq_cancel(struct vql_kq *kq, u16 tag)
{
	spin_lock(&kq->lock);
	vql_kq_free_tag(kq, tag);
	vql_kq_wake_line(kq);
	spin_unlock(&kq->lock);
}

void vql_kq_leave_line(struct vql_lane *lane)
{
	struct vql_kq *kq;

	lockdep_assert_held(&lane->lock);
	if (list_empty(&lane->waiting))
		return;
	kq = lane->config->kqs[lane->line_at];
	spin_lock(&kq->lock);
	list_del_init(&lane->waiting);
	vql_kq_wake_line(kq);
	spin_unlock(&kq->lock);
}
