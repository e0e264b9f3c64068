/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counters and histograms of one disk on one poller, or in the kernel lane: the value of a BPF array
 * map, typed by BTF, mmapped into the poller that writes it. One writer per value, but for the
 * kernel lane's; readers (bpftool, the daemon) take whatever is there.
 */
#ifndef VQLANE_STATS_H
#define VQLANE_STATS_H

#include "io.h"
#include "types.h"

enum {
	VQL_LATENCY_BUCKETS = 144, /* 4 per power of two, up to 2^37 ns = 137 s */
	VQL_SIZE_BUCKETS = 24,     /* one per power of two, from 512 bytes */
};

struct vql_op_stats {
	__u64 count;    /* requests answered */
	__u64 bytes;    /* payload of those that succeeded */
	__u64 errors;   /* answered with another status than OK */
	__u64 bounced;  /* payload that was copied, since the target cannot take it where it is */
	__u64 total_ns; /* sum of the latencies, taken from the ring … used entry published */
	__u64 max_ns;
	__u64 latency[VQL_LATENCY_BUCKETS];
	__u64 size[VQL_SIZE_BUCKETS];
};

struct vql_disk_stats {
	struct vql_op_stats op[VQL_OP_COUNT];
};

/* Who writes which value of a disk's map stats. */
enum {
	/* The kernel lane, by stats.bpf.c: the first one, so that it need not know how many there are. */
	VQL_STATS_LANE = 0,
	VQL_STATS_POLLERS = 1, /* poller 0; the others follow */
};

/*
 * vql_log2() for BPF: clang 14 can not select __builtin_clzll for it (it crashes). Without a branch, for the
 * verifier would go both ways of each, after both ways of all before it.
 */
VQL_INLINE __u32 vql_log2_of_steps(__u64 x)
{
	__u32 log = 0, step;

	for (step = 32; step; step >>= 1) {
		__u64 sign = 0 - (x >> log >> step);

		__asm__("" : "+r"(sign)); /* or clang makes a branch of it */
		log += (__u32)(sign >> 63) * step;
	}
	return log;
}

/* Position of the highest bit of @x (> 0). */
VQL_INLINE __u32 vql_log2(__u64 x)
{
#if defined(__bpf__)
	return vql_log2_of_steps(x);
#else
	return 63u - (__u32)__builtin_clzll(x);
#endif
}

/* Bucket of a latency: exact below 8 ns, within 1/4 above. */
VQL_INLINE __u32 vql_latency_bucket(__u64 ns)
{
	__u32 log, index;

	if (ns < 4)
		return (__u32)ns;
	log = vql_log2(ns);
	index = (log - 1) * 4 + ((__u32)(ns >> (log - 2)) & 3);
	return index < VQL_LATENCY_BUCKETS ? index : VQL_LATENCY_BUCKETS - 1;
}

/* Smallest latency of bucket @index, in ns. */
VQL_INLINE __u64 vql_latency_bucket_floor(__u32 index)
{
	if (index < 4)
		return index;
	return (4ull + (index & 3)) << (index / 4 - 1);
}

/* Bucket of a size: 0 for less than 1 KiB, 1 for less than 2 KiB, … */
VQL_INLINE __u32 vql_size_bucket(__u64 bytes)
{
	__u32 index;

	if (bytes < 1024)
		return 0;
	index = vql_log2(bytes) - 9;
	return index < VQL_SIZE_BUCKETS ? index : VQL_SIZE_BUCKETS - 1;
}

#endif
