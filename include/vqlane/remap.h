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

/*
 * Look up @sectors (> 0) at @sector of a disk with chunks of 1 << @chunk_shift bytes (16…30).
 * Neighbouring chunks are merged while they are neighbours on the target too, at most one request's
 * worth of the smallest chunks: the answer covers 1…@sectors sectors and the caller asks again for
 * the rest. No division, one load per chunk.
 */
VQL_INLINE struct vql_remap vql_remap_lookup(const void *table, vql_extent_fn word_at,
					     __u32 chunk_shift, __u64 sector, __u64 sectors)
{
	const __u32 shift = (chunk_shift - VQL_SECTOR_SHIFT) & 63;
	const __u64 chunk_sectors = 1ull << shift;
	const __u64 offset = sector & (chunk_sectors - 1);
	__u64 index = sector >> shift;
	__u64 word = word_at(table, index);
	struct vql_remap out;
	__u32 merged;

	out.target = vql_extent_target(word);
	out.sector = (vql_extent_chunk(word) << shift) + offset;
	out.sectors = chunk_sectors - offset;
	if (out.sectors > sectors)
		out.sectors = sectors;
	switch (vql_extent_state(word)) {
	case VQL_EXTENT_MAPPED: out.verdict = VQL_SERVE; break;
	case VQL_EXTENT_MOVING: out.verdict = VQL_USER; return out;
	default: out.verdict = VQL_REFUSE; return out;
	}
	for (merged = 0; merged < (VQL_MAX_IO_BYTES >> VQL_MIN_CHUNK_SHIFT); merged++) {
		if (VQL_LIKELY(out.sectors == sectors))
			break;
		/* Same state, same target, next physical chunk: the next word is this one plus one.
		 */
		word++;
		if (word_at(table, ++index) != word || !vql_extent_chunk(word))
			break;
		out.sectors += chunk_sectors;
		if (out.sectors > sectors)
			out.sectors = sectors;
	}
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
#endif

#endif
