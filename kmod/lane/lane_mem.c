// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest's memory as the lanes of its disk see it: its pages where the kernel has them anyway (chunks
 * are contiguous there), and from there, for each controller, DMA addresses. Built when the first lane
 * starts, dropped when all have stopped, in between constant.
 */
#include <linux/highmem.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/vmalloc.h>
#include "lane/lane.h"
#include "mem/mspace.h"

static int by_address(const void *a, const void *b)
{
	const struct vql_region *x = a, *y = b;

	return x->guest < y->guest ? -1 : x->guest > y->guest;
}

/*
 * A guest can have the same memory at two places. Regions must not overlap: what a region shares with
 * the one before it is left to that one. The DMA addresses of the two differ, and lead to the same page.
 */
static u32 sort_and_trim(struct vql_region *r, u32 n)
{
	u32 i, kept = 0;
	u64 end = 0;

	sort(r, n, sizeof(*r), by_address, NULL);
	for (i = 0; i < n; i++) {
		u64 cut = end > r[i].guest ? end - r[i].guest : 0;

		if (cut >= r[i].bytes)
			continue;
		r[i].guest += cut;
		r[i].host += cut;
		r[i].bytes -= cut;
		end = r[i].guest + r[i].bytes;
		r[kept++] = r[i];
	}
	return kept;
}

static struct vql_region chunk_region(const struct vql_placed_chunk *at)
{
	return (struct vql_region){
		.guest = at->guest,
		.bytes = (u64)at->chunk->pages << PAGE_SHIFT,
		.host = page_address(at->chunk->first),
		.flags = at->chunk->read_only ? VQL_MEM_READ_ONLY : 0,
	};
}

/* @dma: of each chunk. */
static int fill_view(struct vql_lane_view *view, const struct vql_mspace *ms, const u64 *dma)
{
	u32 i, kind;

	for (kind = 0; kind < 2; kind++) {
		struct vql_region *r = kvmalloc_array(ms->nchunks, sizeof(*r), GFP_KERNEL);
		u32 n = 0;

		if (!r)
			return -ENOMEM;
		for (i = 0; i < ms->nchunks; i++) {
			const struct vql_placed_chunk *at = &ms->chunks[i];

			if (at->chunk->read_only != (kind == 1))
				continue;
			r[n] = chunk_region(at);
			r[n].guest = (u64)(uintptr_t)r[n].host;
			r[n].host = (u8 *)(uintptr_t)dma[i];
			r[n].flags = 0;
			n++;
		}
		view->dma[kind] = r;
		view->ndma[kind] = sort_and_trim(r, n);
	}
	return 0;
}

static int fill_views(struct vql_lane_mem *mem, struct vql_mspace *ms,
		      struct vql_lane_config *config)
{
	u64 *dma = kvmalloc_array(ms->nchunks, sizeof(*dma), GFP_KERNEL);
	int err = dma ? 0 : -ENOMEM;
	u32 i;

	for (i = 0; i < mem->nviews && !err; i++) {
		err = vql_kq_revive(config->kqs[i]);
		if (!err)
			err = vql_kq_attach(config->kqs[i], ms, dma, &mem->views[i].qpair);
		if (!err && vql_kq_has_data(config->kqs[i]))
			err = fill_view(&mem->views[i], ms, dma);
	}
	kvfree(dma);
	return err;
}

struct vql_lane_mem *vql_lane_mem_create(struct vql_mspace *ms, struct vql_lane_config *config)
{
	struct vql_lane_mem *mem = kzalloc(struct_size(mem, views, config->nkqs), GFP_KERNEL);
	int err;
	u32 i;

	if (!mem)
		return ERR_PTR(-ENOMEM);
	mem->nviews = config->nkqs;
	mem->regions = kvmalloc_array(ms->nchunks, sizeof(*mem->regions), GFP_KERNEL);
	if (!mem->regions) {
		err = -ENOMEM;
		goto err_free;
	}
	mem->nregions = ms->nchunks;
	for (i = 0; i < ms->nchunks; i++) {
		mem->regions[i] = chunk_region(&ms->chunks[i]);
		if (!mem->regions[i].host) { /* high memory: there is none in 64 bits */
			err = -EOPNOTSUPP;
			goto err_free;
		}
	}
	err = fill_views(mem, ms, config);
	if (!err)
		return mem;

err_free:
	vql_lane_mem_free(mem);
	return ERR_PTR(err);
}

bool vql_lane_mem_is_stale(const struct vql_lane_mem *mem, const struct vql_lane_config *config)
{
	u32 i;

	for (i = 0; i < mem->nviews; i++)
		if (!vql_kq_has(config->kqs[i], mem->views[i].qpair))
			return true;
	return false;
}

void vql_lane_mem_free(struct vql_lane_mem *mem)
{
	u32 i;

	if (!mem)
		return;
	for (i = 0; i < mem->nviews; i++) {
		kvfree(mem->views[i].dma[0]);
		kvfree(mem->views[i].dma[1]);
	}
	kvfree(mem->regions);
	kfree(mem);
}

void *vql_lane_mem_ring(struct vql_lane_mem *mem, u64 guest, u64 bytes, bool write, void **map)
{
	struct vql_mem m = {.region = mem->regions, .nregions = mem->nregions};
	void *at = vql_mem_flat(&m, guest, bytes, write);
	u64 first = guest & PAGE_MASK;
	struct page **pages;
	u32 i, n;

	*map = NULL;
	if (at)
		return at;
	/* Over several chunks: put side by side. */
	if (guest + bytes < guest)
		return NULL;
	n = PFN_UP(guest + bytes - first);
	pages = kmalloc_array(n, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return NULL;
	for (i = 0; i < n; i++) {
		at = vql_mem_flat(&m, first + ((u64)i << PAGE_SHIFT), 1, write);
		if (!at)
			goto out;
		pages[i] = virt_to_page(at);
	}
	*map = vmap(pages, n, VM_MAP, PAGE_KERNEL);
out:
	kfree(pages);
	return *map ? *map + offset_in_page(guest) : NULL;
}
