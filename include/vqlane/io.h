/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * struct vql_io: one request, free of any guest protocol. blk.h fills it from
 * a virtio-blk chain; a sibling for virtio-scsi or NVMe would fill the same
 * one; remapping, lanes and engines know nothing else.
 */
#ifndef VQLANE_IO_H
#define VQLANE_IO_H

#include "limits.h"
#include "types.h"

enum vql_op {
	VQL_OP_READ,
	VQL_OP_WRITE,
	VQL_OP_FLUSH,
	VQL_OP_DISCARD,
	VQL_OP_WRITE_ZEROES,
	VQL_OP_GET_ID, /* answered where it is parsed, counted like the others */
	VQL_OP_OTHER,  /* requests refused before their type was known */
	VQL_OP_COUNT,
};

/* How a request ended. The values are those of virtio-blk (virtio 1.3 §5.2.6). */
enum vql_status {
	VQL_STATUS_OK = 0,
	VQL_STATUS_IOERR = 1,
	VQL_STATUS_UNSUPP = 2,
};

enum vql_io_flags {
	VQL_IO_UNMAP = 1 << 0, /* WRITE_ZEROES may give the space back */
};

/* A piece of guest memory as this address space sees it; the layout of struct iovec. */
struct vql_seg {
	void *base;
	__u64 bytes;
};
VQL_STATIC_ASSERT(sizeof(struct vql_seg) == 16, "vql_seg is handed over as iovec");

struct vql_io {
	__u64 sector;        /* first 512-byte sector on the disk */
	__u64 bytes;         /* extent of the request, a multiple of 512 */
	struct vql_seg *seg; /* data of READ, WRITE and GET_ID; the caller owns the array */
	__u32 nsegs;
	__u8 op;     /* enum vql_op */
	__u8 flags;  /* enum vql_io_flags */
	__u8 status; /* enum vql_status; the worst that any part reported */
	__u8 reserved;
};
VQL_STATIC_ASSERT(sizeof(struct vql_io) == 32, "half a cache line");

#endif
