/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How the module asks a BPF program where a request's bytes rest: struct_ops vqlane_remap_ops.
 * bpf/README.md tells how such a program is written.
 */
#ifndef VQLANE_POLICY_H
#define VQLANE_POLICY_H

#include "io.h"
#include "limits.h"
#include "remap.h"
#include "types.h"

/* A program finds each field where the running module has it, or is refused for want of it. */
#if defined(__bpf__)
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
#endif

/* One question. The verifier lets a program write the fields below "out", and no others. */
struct vqlane_remap_req {
	__u32 slot;    /* the disk's place in all maps: 0…VQL_MAX_DISKS-1 */
	__u32 op;      /* enum vql_op: READ, WRITE, DISCARD or WRITE_ZEROES */
	__u64 sector;  /* on the disk, in sectors of 512 bytes */
	__u64 sectors; /* > 0, within the disk */

	/* out */
	__u32 verdict; /* enum vql_verdict; VQL_USER before the call */
	__u32 status;  /* enum vql_status that VQL_REFUSE answers with; IOERR before the call */
	__u32 target;  /* VQL_SERVE: one of the disk's */
	__u32 reserved;
	__u64 target_sector;
	/* From there on, 1…@sectors are contiguous; for what is left another question is asked. */
	__u64 target_sectors;
};
VQL_STATIC_ASSERT(sizeof(struct vqlane_remap_req) == 56, "a program's context");

struct vqlane_remap_ops {
	/*
	 * Called with interrupts off, where a guest's kick is handled; never sleeps, and its time is
	 * the guest's and the CPU's. Returns 0, or anything else to say that it has no answer: then
	 * the request is left to the poll lane, as with VQL_USER.
	 */
	int (*remap)(struct vqlane_remap_req *req);
	/* The disk that it is for. Empty: all that have none of their own. */
	char disk[VQL_DISK_NAME_BYTES];
};

#if defined(__bpf__)
#pragma clang attribute pop
#endif

#endif
