// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest's memory: pages held by references of our own, laid out one after the other in a flat
 * space. mspace_file.c maps them for the poller, attach.c for devices.
 *
 * From vhost-vdpa come physical addresses whose pins it drops before it tells (on a new map and on
 * close), hence the references of our own. They also keep a page from being migrated, and a folio
 * from being split. What is mapped is zapped before its page is let go (vql_mspace_revoke()).
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vhost_iotlb.h>
#include "mem/mspace.h"

/* Pages pinned at a time. */
#define PIN_BATCH 512

/* ---- chunks ---- */

/*
 * One reference (and not one a page) on each folio that has pages in the chunk. A folio with
 * references from elsewhere is not split, so chunk_let_go() meets the same ones.
 */
static void chunk_hold(const struct vql_chunk *chunk)
{
	unsigned long pfn = page_to_pfn(chunk->first), end = pfn + chunk->pages;

	while (pfn < end) {
		struct folio *folio = page_folio(pfn_to_page(pfn));

		folio_get(folio);
		pfn = folio_pfn(folio) + folio_nr_pages(folio);
	}
}

static void chunk_let_go(const struct vql_chunk *chunk)
{
	unsigned long pfn = page_to_pfn(chunk->first), end = pfn + chunk->pages;

	if (chunk->pinned) {
		unpin_user_page_range_dirty_lock(chunk->first, chunk->pages, !chunk->read_only);
		return;
	}
	while (pfn < end) {
		struct folio *folio = page_folio(pfn_to_page(pfn));

		pfn = folio_pfn(folio) + folio_nr_pages(folio);
		if (!chunk->read_only) {
			folio_lock(folio);
			folio_mark_dirty(folio);
			folio_unlock(folio);
		}
		folio_put(folio);
	}
}

static void chunk_put(struct vql_chunk *chunk)
{
	if (!refcount_dec_and_test(&chunk->refs))
		return;
	WARN_ON(!list_empty(&chunk->dma));
	chunk_let_go(chunk);
	kfree(chunk);
}

static struct vql_chunk *chunk_create(struct page *first, u32 pages, bool read_only, bool pinned)
{
	struct vql_chunk *chunk = kmalloc(sizeof(*chunk), GFP_KERNEL);

	if (!chunk)
		return NULL;
	refcount_set(&chunk->refs, 1);
	chunk->pages = pages;
	chunk->read_only = read_only;
	chunk->pinned = pinned;
	chunk->first = first;
	INIT_LIST_HEAD(&chunk->dma);
	if (!pinned)
		chunk_hold(chunk);
	return chunk;
}

/* ---- making one, and its end ---- */

static struct vql_mspace *mspace_create(void)
{
	struct vql_mspace *ms = kzalloc(sizeof(*ms), GFP_KERNEL);

	if (!ms)
		return NULL;
	refcount_set(&ms->refs, 1);
	refcount_set(&ms->page_users, 1);
	INIT_LIST_HEAD(&ms->files);
	INIT_LIST_HEAD(&ms->views);
	return ms;
}

static void put_chunks(struct vql_placed_chunk *chunks, u32 nchunks)
{
	u32 i;

	for (i = 0; i < nchunks; i++) {
		chunk_put(chunks[i].chunk);
		cond_resched();
	}
	kvfree(chunks);
}

void vql_mspace_get_pages(struct vql_mspace *ms) { refcount_inc(&ms->page_users); }

void vql_mspace_put_pages(struct vql_mspace *ms)
{
	if (refcount_dec_and_test(&ms->page_users))
		put_chunks(ms->chunks, ms->nchunks);
}

void vql_mspace_get(struct vql_mspace *ms) { refcount_inc(&ms->refs); }

/* With the last reference there are neither files nor views, so nobody has its pages mapped. */
void vql_mspace_put(struct vql_mspace *ms)
{
	if (!ms || !refcount_dec_and_test(&ms->refs))
		return;
	if (!ms->revoked)
		vql_mspace_put_pages(ms);
	kvfree(ms->regions);
	kfree(ms);
}

static int mspace_place(struct vql_mspace *ms, struct vql_chunk *chunk, u64 guest)
{
	if (ms->nchunks == ms->room) {
		u32 room = max(64u, 2 * ms->room);
		void *chunks;

		if (room <= ms->room)
			return -E2BIG;
		chunks = kvrealloc(ms->chunks, array_size(room, sizeof(*ms->chunks)), GFP_KERNEL);
		if (!chunks)
			return -ENOMEM;
		ms->chunks = chunks;
		ms->room = room;
	}
	ms->chunks[ms->nchunks++] = (struct vql_placed_chunk){
		.chunk = chunk,
		.first_page = ms->pages,
		.guest = guest,
	};
	ms->pages += chunk->pages;
	return 0;
}

static u64 placed_end(const struct vql_placed_chunk *at)
{
	return at->guest + ((u64)at->chunk->pages << PAGE_SHIFT);
}

/* Does @at go on where the chunk before it ended, in one region with it? */
static bool same_region(const struct vql_placed_chunk *at)
{
	return placed_end(at - 1) == at->guest &&
	       (at - 1)->chunk->read_only == at->chunk->read_only;
}

/* All chunks are placed: tell them as regions. */
static int mspace_tell_regions(struct vql_mspace *ms)
{
	struct vql_mregion *region = NULL;
	u32 i;

	for (i = 0; i < ms->nchunks; i++)
		if (!i || !same_region(&ms->chunks[i]))
			ms->nregions++;
	ms->regions = kvcalloc(ms->nregions, sizeof(*ms->regions), GFP_KERNEL);
	if (!ms->regions)
		return -ENOMEM;
	for (i = 0; i < ms->nchunks; i++) {
		const struct vql_placed_chunk *at = &ms->chunks[i];

		if (!i || !same_region(at)) {
			region = region ? region + 1 : ms->regions;
			region->guest = at->guest;
			region->first_page = at->first_page;
			region->flags = at->chunk->read_only ? VQL_REGION_READ_ONLY : 0;
		}
		region->bytes += (u64)at->chunk->pages << PAGE_SHIFT;
	}
	return 0;
}

void vql_mspace_fence(struct vql_mspace *ms)
{
	struct vql_qpair *qp;

	/*
	 * With its files closed off nobody new attaches. Deleting a queue pair takes admin commands,
	 * and so happens without the lock, one after the other.
	 */
	do {
		LIST_HEAD(ended);

		mutex_lock(&vql_attach_lock);
		vql_mspace_close_files(ms);
		qp = vql_attach_any_qpair(ms);
		mutex_unlock(&vql_attach_lock);
		if (!qp)
			break;
		vql_qpair_kill(qp);
		mutex_lock(&vql_attach_lock);
		vql_attach_end(ms, qp, &ended);
		mutex_unlock(&vql_attach_lock);
		vql_attach_free_ended(&ended);
		vql_qpair_put(qp);
	} while (true);
}

void vql_mspace_revoke(struct vql_mspace *ms)
{
	LIST_HEAD(ended);

	if (!ms)
		return;
	mutex_lock(&vql_attach_lock);
	ms->revoked = true;
	vql_mspace_close_files(ms);
	vql_attach_end(ms, NULL, &ended);
	mutex_unlock(&vql_attach_lock);
	vql_attach_free_ended(&ended);
	/* Views that others make or unmap at this moment keep the pages until they are done with it. */
	vql_mspace_put_pages(ms);
}

/* ---- from vhost-vdpa ---- */

/* The chunk of @old with exactly these pages at @guest. @from moves on with rising addresses. */
static struct vql_chunk *same_chunk(struct vql_mspace *old, u32 *from, u64 guest,
				    const struct page *first, u32 pages, bool read_only)
{
	struct vql_chunk *chunk;

	if (!old)
		return NULL;
	while (*from < old->nchunks && old->chunks[*from].guest < guest)
		(*from)++;
	if (*from == old->nchunks || old->chunks[*from].guest != guest)
		return NULL;
	chunk = old->chunks[*from].chunk;
	if (chunk->first != first || chunk->pages != pages || chunk->read_only != read_only)
		return NULL;
	refcount_inc(&chunk->refs);
	return chunk;
}

static int mspace_add_entry(struct vql_mspace *ms, const struct vhost_iotlb_map *entry,
			    struct vql_mspace *old, u32 *from)
{
	bool read_only = !(entry->perm & VHOST_MAP_WO);
	unsigned long pfn = PHYS_PFN(entry->addr);
	u64 guest = entry->start, left = entry->size >> PAGE_SHIFT;
	struct vql_chunk *chunk;
	int err;

	if (!left || !PAGE_ALIGNED(entry->addr | entry->start | entry->size) ||
	    (ms->nchunks && placed_end(&ms->chunks[ms->nchunks - 1]) > guest))
		return -EINVAL;
	while (left) {
		u32 pages = min_t(u64, left, VQL_MAX_CHUNK_PAGES);
		struct page *first = pfn_to_page(pfn);

		chunk = same_chunk(old, from, guest, first, pages, read_only);
		if (!chunk)
			chunk = chunk_create(first, pages, read_only, false);
		if (!chunk)
			return -ENOMEM;
		err = mspace_place(ms, chunk, guest);
		if (err) {
			chunk_put(chunk);
			return err;
		}
		pfn += pages;
		guest += (u64)pages << PAGE_SHIFT;
		left -= pages;
	}
	return 0;
}

/* The caller sees to it that @old is not revoked meanwhile. */
struct vql_mspace *vql_mspace_from_iotlb(struct vhost_iotlb *iotlb, struct vql_mspace *old)
{
	struct vql_mspace *ms = mspace_create();
	struct vhost_iotlb_map *entry;
	u32 from = 0;
	int err = 0;

	if (!ms)
		return ERR_PTR(-ENOMEM);
	/* In rising order of addresses. */
	for (entry = vhost_iotlb_itree_first(iotlb, 0, U64_MAX); entry && !err;
	     entry = vhost_iotlb_itree_next(entry, 0, U64_MAX)) {
		err = mspace_add_entry(ms, entry, old, &from);
		cond_resched();
	}
	if (!err)
		err = mspace_tell_regions(ms);
	if (err) {
		vql_mspace_put(ms);
		return ERR_PTR(err);
	}
	if (old)
		vql_attach_carry_over(old, ms);
	return ms;
}

/* ---- from a caller's mapping ---- */

/* @page is pinned and is the one at @guest. On failure the pin is still the caller's. */
static int mspace_add_pinned(struct vql_mspace *ms, struct page *page, u64 guest, bool read_only,
			     bool new_region)
{
	struct vql_chunk *chunk;
	int err;

	if (!new_region) {
		chunk = ms->chunks[ms->nchunks - 1].chunk;
		if (page_to_pfn(page) == page_to_pfn(chunk->first) + chunk->pages &&
		    chunk->pages < VQL_MAX_CHUNK_PAGES) {
			chunk->pages++;
			ms->pages++;
			return 0;
		}
	}
	chunk = chunk_create(page, 1, read_only, true);
	if (!chunk)
		return -ENOMEM;
	err = mspace_place(ms, chunk, guest);
	if (err)
		kfree(chunk);
	return err;
}

static int mspace_pin_region(struct vql_mspace *ms, const struct vql_mregion *region,
			     struct page **batch)
{
	bool read_only = region->flags & VQL_REGION_READ_ONLY;
	unsigned int gup = FOLL_LONGTERM | (read_only ? 0 : FOLL_WRITE);
	u64 done = 0;
	int err, i;

	while (done < region->bytes) {
		int want = min_t(u64, PIN_BATCH, (region->bytes - done) >> PAGE_SHIFT);
		int got = pin_user_pages_fast(region->user + done, want, gup, batch);

		if (got <= 0)
			return got ?: -EFAULT;
		for (i = 0; i < got; i++) {
			err = mspace_add_pinned(ms, batch[i], region->guest + done, read_only,
						!done);
			if (err) {
				unpin_user_pages(batch + i, got - i);
				return err;
			}
			done += PAGE_SIZE;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return 0;
}

static int validate_regions(const struct vql_mregion *regions, u32 nregions)
{
	u64 end = 0, pages = 0;
	u32 i;

	for (i = 0; i < nregions; i++) {
		const struct vql_mregion *region = &regions[i];

		if (region->reserved || region->first_page || region->flags & ~VQL_REGION_READ_ONLY)
			return -EINVAL;
		if (!region->bytes || !PAGE_ALIGNED(region->guest | region->bytes | region->user))
			return -EINVAL;
		if (region->guest < end || region->guest + region->bytes < region->guest ||
		    region->user + region->bytes < region->user)
			return -EINVAL;
		end = region->guest + region->bytes;
		pages += region->bytes >> PAGE_SHIFT;
		/* So that a table's size is a size. */
		if (pages > SIZE_MAX / PAGE_SIZE / sizeof(u64))
			return -EINVAL;
	}
	return 0;
}

static struct vql_mspace *mspace_pin(struct vql_mregion *regions, u32 nregions)
{
	struct page **batch = kmalloc_array(PIN_BATCH, sizeof(*batch), GFP_KERNEL);
	struct vql_mspace *ms = mspace_create();
	int err = batch && ms ? 0 : -ENOMEM;
	u32 i;

	for (i = 0; i < nregions && !err; i++) {
		regions[i].first_page = ms->pages;
		err = mspace_pin_region(ms, &regions[i], batch);
	}
	if (!err)
		err = mspace_tell_regions(ms);
	kfree(batch);
	if (err) {
		vql_mspace_put(ms);
		return ERR_PTR(err);
	}
	ms->user = true;
	return ms;
}

long vql_mspace_create_fd(struct vql_mspace_create __user *arg)
{
	struct vql_mspace_create create;
	struct vql_mregion *regions;
	struct vql_mspace *ms;
	size_t bytes;
	long ret;

	ret = vql_copy_in(&create, arg, sizeof(create));
	if (ret)
		return ret;
	if (create.reserved[0] || create.reserved[1] || !create.nregions ||
	    create.nregions > VQL_MAX_REGIONS)
		return -EINVAL;
	bytes = create.nregions * sizeof(*regions);
	regions = memdup_user(u64_to_user_ptr(create.regions), bytes);
	if (IS_ERR(regions))
		return PTR_ERR(regions);
	ret = validate_regions(regions, create.nregions);
	if (ret)
		goto out_regions;
	ms = mspace_pin(regions, create.nregions);
	if (IS_ERR(ms)) {
		ret = PTR_ERR(ms);
		goto out_regions;
	}
	if (copy_to_user(u64_to_user_ptr(create.regions), regions, bytes))
		ret = -EFAULT;
	else
		ret = vql_mspace_open(ms);
	vql_mspace_put(ms);
out_regions:
	kfree(regions);
	return ret;
}
