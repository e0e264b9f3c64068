/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * NVMe, as far as an I/O queue pair goes: commands, completions, the two ways to say where data is
 * (PRP and SGL), and doorbells. Section numbers are of the NVMe Base Specification 2.0
 * and, where marked NVM, of the NVM Command Set Specification 1.0.
 *
 * Pure functions on plain memory. Who owns a queue pair, which commands are under way and what
 * becomes of them is the caller's.
 */
#ifndef VQLANE_NVME_H
#define VQLANE_NVME_H

#include "barrier.h"
#include "io.h"
#include "types.h"

enum {
	VQL_NVME_PAGE_SHIFT = 12, /* CC.MPS = 0 */
	VQL_NVME_PAGE_BYTES = 1 << VQL_NVME_PAGE_SHIFT,
	VQL_NVME_LIST_PRPS = VQL_NVME_PAGE_BYTES / 8,  /* entries of a list that fills one page */
	VQL_NVME_LIST_SGLS = VQL_NVME_PAGE_BYTES / 16, /* descriptors, likewise */
	VQL_NVME_MAX_BLOCKS = 1 << 16, /* of one command: NLB is 16 bits, 0's based */
};

/* Opcodes of the NVM command set (NVM §3). */
enum vql_nvme_opcode {
	VQL_NVME_FLUSH = 0x00,
	VQL_NVME_WRITE = 0x01,
	VQL_NVME_READ = 0x02,
	VQL_NVME_WRITE_ZEROES = 0x08,
	VQL_NVME_DSM = 0x09, /* Dataset Management */
};

#define VQL_NVME_PSDT_SGL 0x40u           /* … data by SGL, metadata (none) contiguous */
#define VQL_NVME_FUA (1u << 30)           /* cdw12 of write, write zeroes: stable when done */
#define VQL_NVME_DEAC (1u << 25)          /* cdw12 of write zeroes: may deallocate */
#define VQL_NVME_DSM_DEALLOCATE (1u << 2) /* cdw11 of DSM */

/* An SGL descriptor (§4.1.2). @type: descriptor type in bits 7:4, sub type 0 = address. */
struct vql_nvme_sgl {
	__u64 addr;
	__u32 bytes;
	__u8 reserved[3];
	__u8 type;
};
VQL_STATIC_ASSERT(sizeof(struct vql_nvme_sgl) == 16, "NVMe 2.0 §4.1.2");
#define VQL_NVME_SGL_DATA 0x00u
#define VQL_NVME_SGL_LAST_SEGMENT 0x30u

/* A submission queue entry (§3.3.3.1). */
struct vql_nvme_sqe {
	__u8 opcode;
	__u8 flags;
	__u16 cid;
	__u32 nsid;
	__u32 cdw2;
	__u32 cdw3;
	__u64 metadata;
	union {
		__u64 prp[2];
		struct vql_nvme_sgl sgl;
	} data;
	__u32 cdw10; /* read, write, write zeroes: first block, low half */
	__u32 cdw11; /* … high half */
	__u32 cdw12; /* … blocks - 1 in bits 15:0 */
	__u32 cdw13;
	__u32 cdw14;
	__u32 cdw15;
};
VQL_STATIC_ASSERT(sizeof(struct vql_nvme_sqe) == 64, "NVMe 2.0 §3.3.3.1");
VQL_STATIC_ASSERT(offsetof(struct vql_nvme_sqe, data) == 24, "NVMe 2.0 §3.3.3.1");
VQL_STATIC_ASSERT(offsetof(struct vql_nvme_sqe, cdw10) == 40, "NVMe 2.0 §3.3.3.1");

/* A completion queue entry (§3.3.3.2). */
struct vql_nvme_cqe {
	__u32 result;
	__u32 reserved;
	__u16 sq_head;
	__u16 sq_id;
	__u16 cid;
	__u16 status; /* phase in bit 0, status field above */
};
VQL_STATIC_ASSERT(sizeof(struct vql_nvme_cqe) == 16, "NVMe 2.0 §3.3.3.2");
VQL_STATIC_ASSERT(offsetof(struct vql_nvme_cqe, status) == 14, "NVMe 2.0 §3.3.3.2");

/* A range of Dataset Management (NVM §3.2.3). */
struct vql_nvme_dsm_range {
	__u32 attributes;
	__u32 blocks;
	__u64 lba;
};
VQL_STATIC_ASSERT(sizeof(struct vql_nvme_dsm_range) == 16, "NVM §3.2.3");

/* What a controller does with one command. */
struct vql_nvme_limits {
	__u32 max_transfer; /* bytes of a read or write, a multiple of 4096 */
	__u32 max_zeroes;   /* bytes of a Write Zeroes, likewise (WZSL); 0: it does not say */
	__u32 max_discard;  /* blocks of a range to deallocate (DMRSL, DMSL); 0: it does not say */
};

/*
 * From what Identify tells: MDTS and WZSL in bytes, DMRSL and DMSL in blocks; 0: no limit, but for @max_transfer. A
 * discard is one range here, so both are its.
 */
VQL_INLINE struct vql_nvme_limits vql_nvme_limits_of(__u32 max_transfer, __u32 wzsl, __u32 dmrsl,
						     __u64 dmsl)
{
	struct vql_nvme_limits l;

	l.max_transfer = max_transfer;
	l.max_zeroes = wzsl & ~(__u32)(VQL_NVME_PAGE_BYTES - 1);
	l.max_discard = dmrsl;
	if (dmsl && dmsl < (dmrsl ? dmrsl : ~0u))
		l.max_discard = (__u32)dmsl;
	return l;
}

/*
 * A queue pair as its user sees it, and what its controller can do. All memory is the maker's and
 * outlives the user; queues, list pool and shadows are memory that the controller reads and writes
 * by DMA, both sides coherently.
 */
struct vql_nvme_queue {
	struct vql_nvme_sqe *sq;       /* depth entries */
	const struct vql_nvme_cqe *cq; /* depth entries, zeroed when the queue was made */
	__u32 *sq_doorbell;            /* registers of the controller */
	__u32 *cq_doorbell;
	__u32 *sq_shadow; /* shadow doorbells, or all four NULL */
	__u32 *cq_shadow;
	const __u32 *sq_event; /* event indexes */
	const __u32 *cq_event;
	__u8 *pool;         /* pages for lists and for bouncing */
	__u64 pool_dma;     /* DMA address of pool, page-aligned, contiguous */
	const __u32 *state; /* 0 = live; anything else: the queue pair is lost */
	__u32 pool_pages;
	__u32 depth; /* entries of either queue */
	struct vql_nvme_limits limits;
	__u16 qid;           /* queue identifier, for those who trace */
	__u16 crdt[3];       /* command retry delay times (CRDT1…3), in 100 ms */
	bool sgl;            /* SGLs, of any alignment and granularity (SGLS 01b) */
	bool volatile_cache; /* VWC: there is something to flush */
	bool write_zeroes;   /* ONCS bit 3 */
	bool discard;        /* ONCS bit 2: Dataset Management */
};

/* ---- Completions ---- */

/*
 * Take the completion at @entry when it is one of this turn, that is: when its phase bit is
 * @phase (1 on the first pass over a zeroed queue, then alternating, §3.3.3.2).
 *
 * The controller writes the entry as one, its status word last or with the rest. Acquire: what the
 * command wrote to memory, and the rest of the entry, is read after the phase bit was seen. The
 * device is no CPU, hence the barrier for DMA as well. Pairs with the order in which PCIe delivers
 * posted writes: data before completion.
 */
VQL_INLINE bool vql_nvme_cqe_take(const struct vql_nvme_cqe *entry, __u32 phase,
				  struct vql_nvme_cqe *cqe)
{
	const __u16 status = vql_load_acquire(&entry->status);

	if ((status & 1u) != phase)
		return false;
	vql_dma_rmb();
	cqe->result = entry->result;
	cqe->reserved = 0;
	cqe->sq_head = entry->sq_head;
	cqe->sq_id = entry->sq_id;
	cqe->cid = entry->cid;
	cqe->status = status;
	return true;
}

/*
 * The status field (§3.3.3.2.1) without the phase: do not retry in bit 14, command retry delay in bits 12:11, status
 * code type in bits 10:8, status code in bits 7:0.
 */
#define VQL_NVME_DNR 0x4000u
#define VQL_NVME_CRD_SHIFT 11
#define VQL_NVME_SCT_SHIFT 8
#define VQL_NVME_SCT_MEDIA 2u
#define VQL_NVME_SC_INVALID_OPCODE 0x001u
#define VQL_NVME_SC_ABORTED 0x007u
#define VQL_NVME_SC_SQ_DELETED 0x008u
#define VQL_NVME_SC_UNRECOVERED_READ 0x281u

VQL_INLINE __u32 vql_nvme_status_code(const struct vql_nvme_cqe *cqe)
{
	return (cqe->status >> 1) & 0x7ffu;
}

VQL_INLINE enum vql_status vql_nvme_status(const struct vql_nvme_cqe *cqe)
{
	switch (vql_nvme_status_code(cqe)) {
	case 0: return VQL_STATUS_OK;
	case VQL_NVME_SC_INVALID_OPCODE: return VQL_STATUS_UNSUPP;
	default: return VQL_STATUS_IOERR;
	}
}

/*
 * A command has ended with the error @status (the status field without the phase): in how many ms, at most
 * VQL_NVME_RETRY_MOST_MS, is it to be submitted again? Negative: never, its error is final.
 *
 * @retries: how often it was already. @aborted: we had it aborted, because it took too long; that it was, is no
 * verdict on the command, so DNR does not count. @crdt: the controller's CRDT1…3, in 100 ms.
 *
 * As Linux' own driver has it: DNR decides, whatever the error (path errors included), and the drive says how long
 * to wait. A drive that does not say (it is only asked to with CRDT1 set and host behavior ACRE) is given a growing
 * time to become ready again; a bad block none: time does not help it, and a guest waits.
 */
VQL_INLINE int vql_nvme_retry_ms(__u32 status, __u32 retries, bool aborted, const __u16 *crdt)
{
	const __u32 crd = status >> VQL_NVME_CRD_SHIFT & 3u;
	__u32 ms;

	if (!(status & 0x7ffu) || retries >= VQL_NVME_RETRIES)
		return -1;
	if (status & VQL_NVME_DNR && !(aborted && (status & 0x7ffu) == VQL_NVME_SC_ABORTED))
		return -1;
	if (crd)
		ms = 100u * crdt[crd - 1];
	else if ((status >> VQL_NVME_SCT_SHIFT & 7u) == VQL_NVME_SCT_MEDIA)
		ms = 0;
	else
		ms = (__u32)VQL_NVME_RETRY_MS << 2 * retries;
	return ms < VQL_NVME_RETRY_MOST_MS ? (int)ms : VQL_NVME_RETRY_MOST_MS;
}

/* ---- Doorbells ---- */

/*
 * Does going from @old to @now pass @event? Indexes of a queue, modulo its depth, but compared as
 * 16-bit numbers as §5.8 has it: a queue that has just wrapped may ring once too often.
 */
VQL_INLINE bool vql_nvme_need_event(__u16 event, __u16 now, __u16 old)
{
	return (__u16)(now - event - 1) < (__u16)(now - old);
}

/*
 * Tell the controller that an index has moved from @old to @now: a submission queue's tail, or a
 * completion queue's head. With shadow doorbells (Doorbell Buffer Config, §5.8) the register is
 * written only when the controller has asked for it by its event index; @shadow is NULL without.
 *
 * Release, and a barrier for DMA: the entries are in memory before the controller can see the index
 * (and completions have been read before it can reuse their entries). Full barrier: the shadow is
 * stored before the event index is loaded, while the controller stores its event index before it
 * looks at the shadow a last time; so at least one of the two sees the other's store, and no
 * command waits for a register write that nobody makes.
 */
VQL_INLINE void vql_nvme_ring(__u32 *doorbell, __u32 *shadow, const __u32 *event, __u32 old,
			      __u32 now)
{
	vql_dma_wmb();
	if (shadow) {
		vql_store_release(shadow, now);
		vql_mb();
		if (!vql_nvme_need_event((__u16)vql_read_once(event), (__u16)now, (__u16)old))
			return;
	}
	vql_store_release(doorbell, now);
}

/* ---- Where data is: PRPs (§4.1.1) ---- */

/*
 * A command's data pointer under construction. Memory is added front to back, in runs that are
 * contiguous in DMA addresses and do not cross a page. A PRP list can express: a first run that
 * ends at the end of its page, whole pages, and a last run that begins at the beginning of one.
 */
struct vql_nvme_prp {
	__u64 *list; /* a page of the controller's, for the entries from the second on */
	__u64 first;
	__u64 second;
	__u64 end; /* DMA address behind what was added last */
	__u32 n;   /* entries */
};

VQL_INLINE void vql_nvme_prp_begin(struct vql_nvme_prp *b, __u64 *list)
{
	b->list = list;
	b->first = b->second = b->end = 0;
	b->n = 0;
}

/* Add [dma, dma + bytes), which lies in one page. False: PRPs cannot express it, nothing added. */
VQL_INLINE bool vql_nvme_prp_add(struct vql_nvme_prp *b, __u64 dma, __u64 bytes)
{
	const __u64 offset = VQL_NVME_PAGE_BYTES - 1;

	if (!b->n) {
		if (dma & 3)
			return false;
		b->first = dma;
	} else if (dma == b->end && (dma & offset)) {
		/* goes on in the page of the last entry */
	} else if ((dma | b->end) & offset || b->n > VQL_NVME_LIST_PRPS) {
		return false;
	} else {
		if (b->n == 1) {
			b->second = dma;
		} else {
			if (b->n == 2)
				b->list[0] = b->second;
			b->list[b->n - 1] = dma;
		}
	}
	if (!b->n || !(dma & offset))
		b->n++;
	b->end = dma + bytes;
	return true;
}

/* Two entries fit in the command; more are in the list, at DMA address @list_dma. */
VQL_INLINE void vql_nvme_prp_end(const struct vql_nvme_prp *b, __u64 list_dma,
				 struct vql_nvme_sqe *sqe)
{
	sqe->data.prp[0] = b->first;
	sqe->data.prp[1] = b->n > 2 ? list_dma : b->second;
}

/* ---- Where data is: SGLs (§4.1.2) ---- */

/* Likewise with data block descriptors: any shape, up to VQL_NVME_LIST_SGLS runs. */
struct vql_nvme_sgls {
	struct vql_nvme_sgl *list; /* a page of the controller's */
	__u32 n;
};

VQL_INLINE void vql_nvme_sgl_begin(struct vql_nvme_sgls *b, struct vql_nvme_sgl *list)
{
	b->list = list;
	b->n = 0;
}

/* Add [dma, dma + bytes). False: there is no room in the list. */
VQL_INLINE bool vql_nvme_sgl_add(struct vql_nvme_sgls *b, __u64 dma, __u32 bytes)
{
	struct vql_nvme_sgl *last = b->list + b->n;

	if (b->n && last[-1].addr + last[-1].bytes == dma) {
		last[-1].bytes += bytes; /* a command's data is far below 4 GiB */
		return true;
	}
	if (b->n == VQL_NVME_LIST_SGLS)
		return false;
	memset(last, 0, sizeof(*last));
	last->addr = dma;
	last->bytes = bytes;
	last->type = VQL_NVME_SGL_DATA;
	b->n++;
	return true;
}

/* One descriptor fits in the command; more are in its last (and only) segment, at @list_dma. */
VQL_INLINE void vql_nvme_sgl_end(const struct vql_nvme_sgls *b, __u64 list_dma,
				 struct vql_nvme_sqe *sqe)
{
	sqe->flags |= VQL_NVME_PSDT_SGL;
	if (b->n == 1) {
		sqe->data.sgl = b->list[0];
		return;
	}
	memset(&sqe->data.sgl, 0, sizeof(sqe->data.sgl));
	sqe->data.sgl.addr = list_dma;
	sqe->data.sgl.bytes = b->n * (__u32)sizeof(struct vql_nvme_sgl);
	sqe->data.sgl.type = VQL_NVME_SGL_LAST_SEGMENT;
}

/* ---- Commands; all else in @sqe becomes zero, the data pointer is for the caller to set ---- */

VQL_INLINE void vql_nvme_command(struct vql_nvme_sqe *sqe, enum vql_nvme_opcode opcode, __u16 cid,
				 __u32 nsid)
{
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = (__u8)opcode;
	sqe->cid = cid;
	sqe->nsid = nsid;
}

/* Read, write and write zeroes of @blocks, 1…VQL_NVME_MAX_BLOCKS, from @lba on. */
VQL_INLINE void vql_nvme_blocks(struct vql_nvme_sqe *sqe, __u64 lba, __u32 blocks, __u32 flags)
{
	sqe->cdw10 = (__u32)lba;
	sqe->cdw11 = (__u32)(lba >> 32);
	sqe->cdw12 = (blocks - 1) | flags;
}

/*
 * How many of the @left bytes at @offset one command is to do, in blocks of 1 << @block_shift bytes, all of which are
 * multiples of that: at most what the controller takes, and, but for a discard, which moves no data and may well be
 * large, none beyond a multiple of @boundary (NOIOB in bytes; 0: none).
 *
 * MDTS does not apply to a Write Zeroes, which transfers nothing; but there are controllers that fail a larger one, and
 * Linux's own driver does not ask for more either, unless the controller says how much (WZSL).
 */
VQL_INLINE __u64 vql_nvme_most(const struct vql_nvme_limits *l, __u32 op, __u32 block_shift,
			       __u64 boundary, __u64 offset, __u64 left)
{
	__u64 most = l->max_transfer, to_boundary;

	if (op == VQL_OP_DISCARD) {
		most = (__u64)(l->max_discard ? l->max_discard : ~0u) << block_shift;
		return left < most ? left : most;
	}
	if (op == VQL_OP_WRITE_ZEROES && l->max_zeroes)
		most = l->max_zeroes;
	if (most > (__u64)VQL_NVME_MAX_BLOCKS << block_shift)
		most = (__u64)VQL_NVME_MAX_BLOCKS << block_shift;
	if (most > left)
		most = left;
	if (boundary) {
		to_boundary = boundary - offset % boundary;
		if (most > to_boundary)
			most = to_boundary;
	}
	return most;
}

/* Dataset Management, deallocate: @range is a page of the controller's, at DMA address @dma. */
VQL_INLINE void vql_nvme_deallocate(struct vql_nvme_sqe *sqe, struct vql_nvme_dsm_range *range,
				    __u64 dma, __u64 lba, __u32 blocks)
{
	range->attributes = 0;
	range->blocks = blocks;
	range->lba = lba;
	sqe->data.prp[0] = dma;
	sqe->cdw10 = 0; /* one range, 0's based */
	sqe->cdw11 = VQL_NVME_DSM_DEALLOCATE;
}

#endif
