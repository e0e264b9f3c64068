/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is told of a request to whoever traces it: the argument of the module's tracepoints
 * (kmod/lane/trace.h) and of vqlaned's USDT probes of the same names, so that one BPF program reads both.
 */
#ifndef VQLANE_TRACE_H
#define VQLANE_TRACE_H

#include "io.h"
#include "types.h"

enum vql_lane_kind {
	VQL_LANE_POLL = 1,   /* a poller of vqlaned */
	VQL_LANE_KERNEL = 2, /* vqlane.ko */
};

/*
 * A request so far. Times are CLOCK_MONOTONIC in ns; 0: that has not happened, or never does (a
 * request that is answered where it is parsed is neither remapped nor submitted). A poller looks at
 * its clock once a round, so that its times are those of the rounds.
 */
struct vql_trace_io {
	__u32 slot;  /* the disk's place in all maps: 0…VQL_MAX_DISKS-1 */
	__u16 queue; /* of the disk */
	__u16 head;  /* of the descriptor chain: with slot and queue, names a request under way */
	__u8 op;     /* enum vql_op */
	__u8 status; /* enum vql_status; final in "complete" */
	__u8 lane;   /* enum vql_lane_kind */
	__u8 reserved;
	__u32 target; /* of its first part */
	__u64 sector; /* on the disk, in sectors of 512 bytes */
	__u64 bytes;
	__u64 fetched;     /* taken from the ring */
	__u64 remapped;    /* its first part was */
	__u64 submitted;   /* its last command is in the device's queue */
	__u64 device_done; /* the completion of its last command was reaped */
	__u64 completed;   /* its used entry was published */
};
VQL_STATIC_ASSERT(sizeof(struct vql_trace_io) == 72, "BPF programs know its layout");
VQL_STATIC_ASSERT(offsetof(struct vql_trace_io, sector) == 16, "BPF programs know its layout");
VQL_STATIC_ASSERT(offsetof(struct vql_trace_io, fetched) == 32, "BPF programs know its layout");

/* What `vqlane trace` asks of bpf/events.bpf.c, and is told: the one value of its map control. */
#define VQL_TRACE_ANY 0xffffffffu
struct vql_trace_control {
	__u32 slot; /* of the disk, or ANY */
	__u32 op;   /* enum vql_op, or ANY */
	__u64 slower_than_ns;
	__u64 dropped; /* requests for which the ring buffer had no room */
};

/* Parts of a request's time; 0 where it did not come that far. */
struct vql_trace_stages {
	__u64 ring;       /* taken from the ring: walked and validated */
	__u64 remap;      /* looked up, made into commands; waited for room */
	__u64 device;     /* its last command in the queue … that one's completion reaped */
	__u64 completion; /* … used entry published */
	__u64 total;
};

VQL_INLINE __u64 vql_trace_between(__u64 from, __u64 to)
{
	return from && to > from ? to - from : 0;
}

VQL_INLINE struct vql_trace_stages vql_trace_stages_of(const struct vql_trace_io *io)
{
	struct vql_trace_stages s;

	/* A FLUSH is not remapped: what it waits for is told with the stage before. */
	s.ring = vql_trace_between(io->fetched, io->remapped ? io->remapped : io->submitted);
	s.remap = io->remapped ? vql_trace_between(io->remapped, io->submitted) : 0;
	s.device = vql_trace_between(io->submitted, io->device_done);
	s.completion = vql_trace_between(io->submitted ? io->device_done : 0, io->completed);
	s.total = vql_trace_between(io->fetched, io->completed);
	return s;
}

#endif
