/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The module's static tracepoints: what becomes of the requests that the kernel lane serves. vqlaned
 * has USDT probes of the same names and arguments for those of the poll lane. BPF programs get the
 * arguments themselves (tp_btf); tracefs prints them as below.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM vqlane

#if !defined(_VQLANE_KMOD_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _VQLANE_KMOD_TRACE_H

#include <linux/tracepoint.h>
#include <vqlane/remap.h>
#include <vqlane/trace.h>

/* clang-format off */
#define vql_show_op(op)                                                                            \
	__print_symbolic(op, { VQL_OP_READ, "read" }, { VQL_OP_WRITE, "write" },                   \
			 { VQL_OP_FLUSH, "flush" }, { VQL_OP_DISCARD, "discard" },                 \
			 { VQL_OP_WRITE_ZEROES, "write_zeroes" }, { VQL_OP_GET_ID, "get_id" },     \
			 { VQL_OP_OTHER, "other" })
#define vql_show_status(status)                                                                    \
	__print_symbolic(status, { VQL_STATUS_OK, "ok" }, { VQL_STATUS_IOERR, "ioerr" },           \
			 { VQL_STATUS_UNSUPP, "unsupp" })
#define vql_show_verdict(verdict)                                                                  \
	__print_symbolic(verdict, { VQL_SERVE, "serve" }, { VQL_USER, "user" },                    \
			 { VQL_REFUSE, "refuse" })
#define vql_show_lane(lane)                                                                        \
	__print_symbolic(lane, { VQL_LANE_POLL, "poll" }, { VQL_LANE_KERNEL, "kernel" })

/* A request was taken from its ring and is valid. */
TRACE_EVENT(vqlane_fetch,
	TP_PROTO(const struct vql_trace_io *io),
	TP_ARGS(io),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u16, queue)
		__field(u16, head)
		__field(u8, op)
		__field(u64, sector)
		__field(u64, bytes)
	),
	TP_fast_assign(
		__entry->slot = io->slot;
		__entry->queue = io->queue;
		__entry->head = io->head;
		__entry->op = io->op;
		__entry->sector = io->sector;
		__entry->bytes = io->bytes;
	),
	TP_printk("slot=%u queue=%u head=%u op=%s sector=%llu bytes=%llu",
		  __entry->slot, __entry->queue, __entry->head, vql_show_op(__entry->op),
		  __entry->sector, __entry->bytes)
);

/* A part of it was looked up; @target_sector and @sectors where the verdict is to serve it. */
TRACE_EVENT(vqlane_remap,
	TP_PROTO(const struct vql_trace_io *io, u32 verdict, u64 target_sector, u64 sectors),
	TP_ARGS(io, verdict, target_sector, sectors),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u16, queue)
		__field(u16, head)
		__field(u32, verdict)
		__field(u32, target)
		__field(u64, target_sector)
		__field(u64, sectors)
	),
	TP_fast_assign(
		__entry->slot = io->slot;
		__entry->queue = io->queue;
		__entry->head = io->head;
		__entry->verdict = verdict;
		__entry->target = io->target;
		__entry->target_sector = target_sector;
		__entry->sectors = sectors;
	),
	TP_printk("slot=%u queue=%u head=%u verdict=%s target=%u target_sector=%llu sectors=%llu",
		  __entry->slot, __entry->queue, __entry->head, vql_show_verdict(__entry->verdict),
		  __entry->target, __entry->target_sector, __entry->sectors)
);

/* A command of it is in submission queue @qid, as @cid. */
TRACE_EVENT(vqlane_submit,
	TP_PROTO(const struct vql_trace_io *io, u16 qid, u16 cid),
	TP_ARGS(io, qid, cid),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u16, queue)
		__field(u16, head)
		__field(u16, qid)
		__field(u16, cid)
	),
	TP_fast_assign(
		__entry->slot = io->slot;
		__entry->queue = io->queue;
		__entry->head = io->head;
		__entry->qid = qid;
		__entry->cid = cid;
	),
	TP_printk("slot=%u queue=%u head=%u qid=%u cid=%u",
		  __entry->slot, __entry->queue, __entry->head, __entry->qid, __entry->cid)
);

/* Its used entry was published. */
TRACE_EVENT(vqlane_complete,
	TP_PROTO(const struct vql_trace_io *io),
	TP_ARGS(io),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u16, queue)
		__field(u16, head)
		__field(u8, op)
		__field(u8, status)
		__field(u64, sector)
		__field(u64, bytes)
		__field(u64, fetched)
		__field(u64, remapped)
		__field(u64, submitted)
		__field(u64, device_done)
		__field(u64, completed)
	),
	TP_fast_assign(
		__entry->slot = io->slot;
		__entry->queue = io->queue;
		__entry->head = io->head;
		__entry->op = io->op;
		__entry->status = io->status;
		__entry->sector = io->sector;
		__entry->bytes = io->bytes;
		__entry->fetched = io->fetched;
		__entry->remapped = io->remapped;
		__entry->submitted = io->submitted;
		__entry->device_done = io->device_done;
		__entry->completed = io->completed;
	),
	TP_printk("slot=%u queue=%u head=%u op=%s sector=%llu bytes=%llu status=%s fetched=%llu remapped=%llu submitted=%llu device_done=%llu completed=%llu",
		  __entry->slot, __entry->queue, __entry->head, vql_show_op(__entry->op),
		  __entry->sector, __entry->bytes, vql_show_status(__entry->status),
		  __entry->fetched, __entry->remapped, __entry->submitted, __entry->device_done,
		  __entry->completed)
);

/* A queue changes hands. */
TRACE_EVENT(vqlane_lane,
	TP_PROTO(u32 slot, u16 queue, u8 from, u8 to, const char *reason),
	TP_ARGS(slot, queue, from, to, reason),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u16, queue)
		__field(u8, from)
		__field(u8, to)
		__string(reason, reason)
	),
	TP_fast_assign(
		__entry->slot = slot;
		__entry->queue = queue;
		__entry->from = from;
		__entry->to = to;
		__assign_str(reason);
	),
	TP_printk("slot=%u queue=%u from=%s to=%s reason=%s",
		  __entry->slot, __entry->queue, vql_show_lane(__entry->from),
		  vql_show_lane(__entry->to), __get_str(reason))
);

/* What went wrong with a queue, apart from requests that are answered with an error. */
TRACE_EVENT(vqlane_error,
	TP_PROTO(u32 slot, u16 queue, int code, const char *text),
	TP_ARGS(slot, queue, code, text),
	TP_STRUCT__entry(
		__field(u32, slot)
		__field(u16, queue)
		__field(int, code)
		__string(text, text)
	),
	TP_fast_assign(
		__entry->slot = slot;
		__entry->queue = queue;
		__entry->code = code;
		__assign_str(text);
	),
	TP_printk("slot=%u queue=%u code=%d text=%s",
		  __entry->slot, __entry->queue, __entry->code, __get_str(text))
);
/* clang-format on */

#endif

/* Not in the kernel's include/trace/events: trace.c is compiled with this folder in its path. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
