// SPDX-License-Identifier: GPL-2.0-only
/*
 * Requests that have ended, one record each, for `vqlane trace`: of both lanes, into one ring buffer.
 * What is not asked for is left out here, where that costs least.
 */
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <vqlane/trace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>

char LICENSE[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vql_trace_control);
} control SEC(".maps");

static __always_inline void tell(const struct vql_trace_io *io)
{
	const __u32 key = 0;
	struct vql_trace_control *c = bpf_map_lookup_elem(&control, &key);

	if (!c || (c->slot != VQL_TRACE_ANY && c->slot != io->slot) ||
	    (c->op != VQL_TRACE_ANY && c->op != io->op) ||
	    io->completed - io->fetched < c->slower_than_ns)
		return;
	if (bpf_ringbuf_output(&events, (void *)io, sizeof(*io), 0))
		__sync_fetch_and_add(&c->dropped, 1);
}

SEC("raw_tp/vqlane_complete")
int kernel_complete(struct bpf_raw_tracepoint_args *ctx)
{
	struct vql_trace_io io;

	if (!bpf_probe_read_kernel(&io, sizeof(io), (const void *)ctx->args[0]))
		tell(&io);
	return 0;
}

SEC("usdt")
int poll_complete(struct pt_regs *ctx)
{
	struct vql_trace_io io;
	long at;

	if (!bpf_usdt_arg(ctx, 0, &at) && !bpf_probe_read_user(&io, sizeof(io), (const void *)at))
		tell(&io);
	return 0;
}
