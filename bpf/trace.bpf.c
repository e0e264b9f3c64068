// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where requests spend their time, for an operator with nothing but bpftool (README.md has the
 * session). Programs raw_tp on the module's tracepoints for the kernel lane, and on the functions of
 * vqlaned's probes for the poll lane; each is attached where there is something to attach it to.
 *
 * Both raw_tp and uprobe.multi give links that can be pinned, as tp_btf does but USDT does not; and
 * a raw_tp program loads without the module, so that one object is for all machines. The poll lane
 * comes first: bpftool 7.5 makes the folder of the pins only when it has a link to put there.
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <vqlane/stats.h>
#include <vqlane/trace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

enum vql_stage {
	VQL_STAGE_RING = 1, /* as in struct vql_trace_stages */
	VQL_STAGE_REMAP,
	VQL_STAGE_DEVICE,
	VQL_STAGE_COMPLETION,
	VQL_STAGE_TOTAL,
};

struct vql_latency_key {
	__u32 slot;
	enum vql_lane_kind lane;
	enum vql_stage stage;
};

struct vql_latency_value {
	__u64 count;
	__u64 total_ns;
	__u64 max_ns;
	__u64 log2_ns[38]; /* [i]: 2^i ≤ ns < 2^(i+1); [0] has 0 as well, the last all beyond */
};

/* Preallocated: with interrupts off, an allocation may fail, and what is not told is missed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VQL_MAX_DISKS * 2 * 5);
	__type(key, struct vql_latency_key);
	__type(value, struct vql_latency_value);
} latency SEC(".maps");

struct vql_request_key {
	__u32 slot;
	enum vql_lane_kind lane;
	enum vql_op op;
};

struct vql_request_value {
	__u64 count;
	__u64 bytes; /* of those that succeeded */
	__u64 errors;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, VQL_MAX_DISKS * 2 * VQL_OP_COUNT);
	__type(key, struct vql_request_key);
	__type(value, struct vql_request_value);
} requests SEC(".maps");

/* bpftool map update … writes it: from how many ns on a request is a line of tracelog. */
struct vql_trace_settings {
	__u64 slow_ns; /* 0: 10 ms */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vql_trace_settings);
} settings SEC(".maps");

static const char op_names[8][16] = {"read",         "write",  "flush", "discard",
				     "write_zeroes", "get_id", "other", "?"};

/* Made on first use, by whoever comes first. */
static __always_inline void *value_of(void *map, const void *key, const void *zero)
{
	void *value = bpf_map_lookup_elem(map, key);

	if (value)
		return value;
	bpf_map_update_elem(map, key, zero, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

static __always_inline void add_latency(const struct vql_trace_io *io, enum vql_stage stage,
					__u64 ns)
{
	static const struct vql_latency_value zero;
	const struct vql_latency_key key = {io->slot, io->lane, stage};
	struct vql_latency_value *value = value_of(&latency, &key, &zero);
	__u32 bucket = vql_log2(ns | 1);

	if (!value)
		return;
	if (bucket >= 38)
		bucket = 37;
	__sync_fetch_and_add(&value->count, 1);
	__sync_fetch_and_add(&value->total_ns, ns);
	__sync_fetch_and_add(&value->log2_ns[bucket], 1);
	if (ns > value->max_ns)
		value->max_ns = ns; /* two at the same time: one of them is lost */
}

static __always_inline void add_request(const struct vql_trace_io *io)
{
	static const struct vql_request_value zero;
	const struct vql_request_key key = {io->slot, io->lane, io->op};
	struct vql_request_value *value = value_of(&requests, &key, &zero);

	if (!value)
		return;
	__sync_fetch_and_add(&value->count, 1);
	if (io->status == VQL_STATUS_OK)
		__sync_fetch_and_add(&value->bytes, io->bytes);
	else
		__sync_fetch_and_add(&value->errors, 1);
}

static __always_inline void tell_remarkable(const struct vql_trace_io *io,
					    const struct vql_trace_stages *stages)
{
	const __u32 key = 0;
	const struct vql_trace_settings *s = bpf_map_lookup_elem(&settings, &key);
	const __u64 slow_ns = s && s->slow_ns ? s->slow_ns : 10 * 1000 * 1000;

	if (stages->total < slow_ns && io->status == VQL_STATUS_OK)
		return;
	bpf_printk("vqlane: slot %u queue %u %s sector %llu bytes %llu: status %u, %llu us, in the "
		   "device %llu us",
		   io->slot, io->queue, op_names[io->op & 7], io->sector, io->bytes, io->status,
		   stages->total / 1000, stages->device / 1000);
}

static __always_inline void completed(const struct vql_trace_io *io)
{
	const struct vql_trace_stages s = vql_trace_stages_of(io);

	add_request(io);
	if (io->remapped)
		add_latency(io, VQL_STAGE_REMAP, s.remap);
	if (io->submitted) {
		add_latency(io, VQL_STAGE_RING, s.ring);
		add_latency(io, VQL_STAGE_DEVICE, s.device);
		add_latency(io, VQL_STAGE_COMPLETION, s.completion);
	}
	add_latency(io, VQL_STAGE_TOTAL, s.total);
	tell_remarkable(io, &s);
}

SEC("uprobe.multi/vqlaned:vql_probe_complete")
int poll_complete(struct pt_regs *ctx)
{
	struct vql_trace_io io;

	if (!bpf_probe_read_user(&io, sizeof(io), (const void *)PT_REGS_PARM1(ctx)))
		completed(&io);
	return 0;
}

SEC("raw_tp/vqlane_complete")
int kernel_complete(struct bpf_raw_tracepoint_args *ctx)
{
	struct vql_trace_io io;

	if (!bpf_probe_read_kernel(&io, sizeof(io), (const void *)ctx->args[0]))
		completed(&io);
	return 0;
}

#define LANE_LINE "vqlane: slot %u queue %u: lane %u to %u (0 none, 1 poll, 2 kernel): %s"
#define ERROR_LINE "vqlane: slot %u queue %u: error %d: %s"

SEC("uprobe.multi/vqlaned:vql_probe_lane")
int poll_lane(struct pt_regs *ctx)
{
	char reason[48];

	bpf_probe_read_user_str(reason, sizeof(reason), (const void *)PT_REGS_PARM5(ctx));
	bpf_printk(LANE_LINE, (__u32)PT_REGS_PARM1(ctx), (__u16)PT_REGS_PARM2(ctx),
		   (__u8)PT_REGS_PARM3(ctx), (__u8)PT_REGS_PARM4(ctx), reason);
	return 0;
}

SEC("raw_tp/vqlane_lane")
int kernel_lane(struct bpf_raw_tracepoint_args *ctx)
{
	char reason[48];

	bpf_probe_read_kernel_str(reason, sizeof(reason), (const void *)ctx->args[4]);
	bpf_printk(LANE_LINE, (__u32)ctx->args[0], (__u16)ctx->args[1], (__u8)ctx->args[2],
		   (__u8)ctx->args[3], reason);
	return 0;
}

SEC("uprobe.multi/vqlaned:vql_probe_error")
int poll_error(struct pt_regs *ctx)
{
	char text[64];

	bpf_probe_read_user_str(text, sizeof(text), (const void *)PT_REGS_PARM4(ctx));
	bpf_printk(ERROR_LINE, (__u32)PT_REGS_PARM1(ctx), (__u16)PT_REGS_PARM2(ctx),
		   (int)PT_REGS_PARM3(ctx), text);
	return 0;
}

SEC("raw_tp/vqlane_error")
int kernel_error(struct bpf_raw_tracepoint_args *ctx)
{
	char text[64];

	bpf_probe_read_kernel_str(text, sizeof(text), (const void *)ctx->args[3]);
	bpf_printk(ERROR_LINE, (__u32)ctx->args[0], (__u16)ctx->args[1], (int)ctx->args[2], text);
	return 0;
}
