/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The answer that a disk's extent table has to a request: all of the default program, and the rest of a
 * policy that minds some requests only.
 */
#ifndef VQLANE_LOOKUP_BPF_H
#define VQLANE_LOOKUP_BPF_H

#include "maps.bpf.h"
#include <vqlane/policy.h>
#include <bpf/bpf_tracing.h>

/* BPF_PROG() has an argument that its programs do not name. */
#pragma clang diagnostic ignored "-Wunused-parameter"

static __always_inline __u64 vql_map_word(const void *table, __u64 index)
{
	__u32 key = (__u32)index;
	const __u64 *word;

	if (index != key)
		return 0;
	word = bpf_map_lookup_elem((void *)table, &key);
	return word ? *(const volatile __u64 *)word : 0;
}

static long vql_map_run_round(__u32 round, void *run)
{
	(void)round;
	return !vql_extent_run_on(run, vql_map_word);
}

static __always_inline void vql_map_run(struct vql_extent_run *run, __u32 further)
{
	bpf_loop(further, vql_map_run_round, run, 0);
}

/*
 * Answers @req with where @sectors at @sector of its disk rest. Returns 0, or -1 where there is no table:
 * then the poll lane has to answer.
 */
static __always_inline int vql_table_lookup(struct vqlane_remap_req *req, __u64 sector,
					    __u64 sectors)
{
	__u32 slot = req->slot, chunk_shift;
	struct vql_disk_entry *disk;
	struct vql_remap answer;
	void *table;

	table = bpf_map_lookup_elem(&tables, &slot);
	/* In this order: struct vql_disk_entry says why. */
	disk = bpf_map_lookup_elem(&disks, &slot);
	/* Another daemon's maps may be of the same size, and mean something else. */
	if (!table || !disk || disk->version != VQL_MAPS_VERSION)
		return -1;
	chunk_shift = *(volatile __u32 *)&disk->chunk_shift;
	if (chunk_shift < VQL_MIN_CHUNK_SHIFT || chunk_shift > VQL_MAX_CHUNK_SHIFT)
		return -1;
	answer = vql_remap_lookup(table, vql_map_word, vql_map_run, chunk_shift, sector, sectors);
	req->target = answer.target;
	req->target_sector = answer.sector;
	req->target_sectors = answer.sectors;
	req->verdict = answer.verdict;
	return 0;
}

#endif
