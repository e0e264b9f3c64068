// SPDX-License-Identifier: GPL-2.0-only
/*
 * The statistics of the kernel lane: what its requests add to value VQL_STATS_LANE of their disk's map stats,
 * as pollers do to theirs. The daemon attaches it with the first disk that may be in the kernel lane, and it stays
 * as long as there is a disk.
 */
#include <linux/bpf.h>
#include <vqlane/stats.h>
#include <vqlane/trace.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/*
 * The daemon's map of this name is put in its place. By size only: clang describes no type behind the
 * pointers of an inner map where a program is (and maps.bpf.h has none).
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VQL_MAX_DISKS);
	__type(key, __u32);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
			__uint(max_entries, 1);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, sizeof(struct vql_disk_stats));
		});
} stats_tables SEC(".maps");

/* Several CPUs complete requests of one disk at the same time: all sums are atomic. */
static __always_inline void count(struct vql_op_stats *s, const struct vql_trace_io *io)
{
	const __u64 ns = vql_trace_between(io->fetched, io->completed);
	__u32 latency = vql_latency_bucket(ns), size = vql_size_bucket(io->bytes);

	/* For the verifier they are to be compared here: clang knows that they are in range. */
	__asm__("" : "+r"(latency), "+r"(size));
	__sync_fetch_and_add(&s->count, 1);
	if (io->status == VQL_STATUS_OK)
		__sync_fetch_and_add(&s->bytes, io->bytes);
	else
		__sync_fetch_and_add(&s->errors, 1);
	__sync_fetch_and_add(&s->total_ns, ns);
	if (ns > s->max_ns)
		s->max_ns = ns; /* two at the same time: one of them is lost */
	if (latency < VQL_LATENCY_BUCKETS)
		__sync_fetch_and_add(&s->latency[latency], 1);
	if (size < VQL_SIZE_BUCKETS)
		__sync_fetch_and_add(&s->size[size], 1);
}

SEC("raw_tp/vqlane_complete")
int kernel_stats(struct bpf_raw_tracepoint_args *ctx)
{
	struct vql_disk_stats *s;
	struct vql_trace_io io;
	const __u32 lane = VQL_STATS_LANE;
	void *map;

	if (bpf_probe_read_kernel(&io, sizeof(io), (const void *)ctx->args[0]))
		return 0;
	map = bpf_map_lookup_elem(&stats_tables, &io.slot);
	if (!map)
		return 0;
	s = bpf_map_lookup_elem(map, &lane);
	if (s && io.op < VQL_OP_COUNT)
		count(&s->op[io.op], &io);
	return 0;
}
