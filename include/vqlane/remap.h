/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The extent table: virtual chunk → (target, physical chunk), one 8-byte word
 * each, in an array that BPF programs read as a map and pollers as memory.
 *
 * The daemon is the only writer. It replaces a word with one atomic store, so a
 * reader sees the old or the new mapping, never a mixture. Words carry all there
 * is to know, so no order between two words is needed.
 */
#ifndef VQLANE_REMAP_H
#define VQLANE_REMAP_H

#include "limits.h"
#include "types.h"

/* Word: bits 63…60 state, 59…48 target, 47…0 physical chunk. */
enum vql_extent_state {
	VQL_EXTENT_HOLE = 0, /* nothing here: refused */
	VQL_EXTENT_MAPPED = 1,
	VQL_EXTENT_MOVING = 2, /* the daemon is at it: leave it to the daemon */
};

/* What is to be done with a request. */
enum vql_verdict {
	VQL_SERVE = 0,  /* target and sector are valid */
	VQL_USER = 1,   /* leave it to the poll lane and the daemon */
	VQL_REFUSE = 2, /* answer with IOERR */
};

#define VQL_EXTENT_CHUNK_MASK ((1ull << 48) - 1)

/* @target 0…VQL_MAX_TARGETS-1, @chunk 0…2^48-1 */
VQL_INLINE __u64 vql_extent_word(enum vql_extent_state state, __u32 target, __u64 chunk)
{
	return (__u64)state << 60 | (__u64)(target & 0xfff) << 48 | (chunk & VQL_EXTENT_CHUNK_MASK);
}

VQL_INLINE __u32 vql_extent_state(__u64 word) { return (__u32)(word >> 60); }
VQL_INLINE __u32 vql_extent_target(__u64 word) { return (__u32)(word >> 48) & 0xfff; }
VQL_INLINE __u64 vql_extent_chunk(__u64 word) { return word & VQL_EXTENT_CHUNK_MASK; }

struct vql_remap {
	__u32 verdict; /* enum vql_verdict */
	__u32 target;
	__u64 sector;  /* on the target */
	__u64 sectors; /* contiguous there: 1…asked */
};

/*
 * How a dialect reads word @index: plain memory for the poller, a map lookup for BPF. Outside the
 * table it returns a hole. Always inlined, so the indirection costs nothing.
 */
typedef __u64 (*vql_extent_fn)(const void *table, __u64 index);

/* A run of chunks that are neighbours on the target too, while it is followed. */
struct vql_extent_run {
	const void *table;
	__u64 index; /* of the last chunk */
	__u64 word;  /* its word */
};

/*
 * If the next chunk continues @run, make it the run's last. Same state, same target, next physical chunk: its
 * word is the last one's plus one.
 */
VQL_INLINE int vql_extent_run_on(struct vql_extent_run *run, vql_extent_fn word_at)
{
	if (word_at(run->table, run->index + 1) != run->word + 1)
		return 0;
	run->index++;
	run->word++;
	return 1;
}

/*
 * How a dialect goes on with @run, by vql_extent_run_on(), for at most @further chunks (0…VQL_MAX_RUN): a loop, or
 * bpf_loop(), of which the verifier looks at one round instead of each.
 */
typedef void (*vql_extent_run_fn)(struct vql_extent_run *run, __u32 further);

/*
 * Look up @sectors (> 0) at @sector of a disk with chunks of 1 << @chunk_shift bytes (16…30).
 * Neighbouring chunks are merged while they are neighbours on the target too, at most VQL_MAX_RUN beyond the first:
 * the answer covers 1…@sectors sectors and the caller asks again for the rest. No division, one load
 * per chunk.
 */
VQL_INLINE struct vql_remap vql_remap_lookup(const void *table, vql_extent_fn word_at,
					     vql_extent_run_fn run_to, __u32 chunk_shift,
					     __u64 sector, __u64 sectors)
{
	const __u32 shift = (chunk_shift - VQL_SECTOR_SHIFT) & 63;
	const __u64 chunk_sectors = 1ull << shift;
	const __u64 offset = sector & (chunk_sectors - 1);
	const __u64 index = sector >> shift;
	const __u64 word = word_at(table, index);
	struct vql_extent_run run = {table, index, word};
	__u64 further;
	struct vql_remap out;

	out.target = vql_extent_target(word);
	out.sector = (vql_extent_chunk(word) << shift) + offset;
	out.sectors = chunk_sectors - offset;
	switch (vql_extent_state(word)) {
	case VQL_EXTENT_MAPPED: out.verdict = VQL_SERVE; break;
	case VQL_EXTENT_MOVING: out.verdict = VQL_USER; break;
	default: out.verdict = VQL_REFUSE; break;
	}
	if (VQL_LIKELY(out.sectors >= sectors)) {
		out.sectors = sectors;
		return out;
	}
	if (out.verdict != VQL_SERVE)
		return out;
	/* Chunks beyond the first that the request reaches into. No chunk follows the highest number. */
	further = (sectors - out.sectors + chunk_sectors - 1) >> shift;
	if (further > VQL_EXTENT_CHUNK_MASK - vql_extent_chunk(word))
		further = VQL_EXTENT_CHUNK_MASK - vql_extent_chunk(word);
	if (further > VQL_MAX_RUN)
		further = VQL_MAX_RUN;
	run_to(&run, (__u32)further);
	out.sectors += (run.index - index) << shift;
	if (out.sectors > sectors)
		out.sectors = sectors;
	return out;
}

#if !defined(__bpf__)
/* The table as a poller sees it. */
struct vql_extent_table {
	const __u64 *word;
	__u64 chunks;
	__u32 chunk_shift;
};

VQL_INLINE __u64 vql_extent_table_at(const void *table, __u64 index)
{
	const struct vql_extent_table *t = (const struct vql_extent_table *)table;

	/* Pairs with the daemon's single store: relaxed, for a word depends on nothing else. */
	return VQL_LIKELY(index < t->chunks) ? __atomic_load_n(&t->word[index], __ATOMIC_RELAXED)
					     : 0;
}

VQL_INLINE void vql_extent_table_run(struct vql_extent_run *run, __u32 further)
{
	while (further-- && vql_extent_run_on(run, vql_extent_table_at))
		;
}
#endif

#endif
