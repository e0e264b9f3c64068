/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * virtio-blk (virtio 1.3 §5.2): a chain → struct vql_io, validated; and its
 * answer back. A request that can be answered is answered with a status; only
 * a chain without a writable byte breaks its ring.
 */
#ifndef VQLANE_BLK_H
#define VQLANE_BLK_H

#include "io.h"
#include "types.h"
#include "vring.h"

/* Request types and flags, virtio 1.3 §5.2.6. */
enum {
	VQL_BLK_T_IN = 0,
	VQL_BLK_T_OUT = 1,
	VQL_BLK_T_FLUSH = 4,
	VQL_BLK_T_GET_ID = 8,
	VQL_BLK_T_DISCARD = 11,
	VQL_BLK_T_WRITE_ZEROES = 13,
	VQL_BLK_WRITE_ZEROES_F_UNMAP = 1,
};

struct vql_blk_hdr {
	__u32 type;
	__u32 reserved; /* once ioprio; ignored */
	__u64 sector;
};
VQL_STATIC_ASSERT(sizeof(struct vql_blk_hdr) == 16, "virtio 1.3 §5.2.6");

struct vql_blk_range {
	__u64 sector;
	__u32 sectors;
	__u32 flags;
};
VQL_STATIC_ASSERT(sizeof(struct vql_blk_range) == 16, "virtio 1.3 §5.2.6");

/* What a disk lets its guest do. Written while the disk's queues are stopped, read by one queue. */
struct vql_blk_disk {
	__u64 sectors;     /* capacity in 512-byte sectors */
	__u32 block_bytes; /* logical block: 512 or 4096 */
	bool read_only;
	bool discard;          /* the driver negotiated VIRTIO_BLK_F_DISCARD */
	bool write_zeroes;     /* … VIRTIO_BLK_F_WRITE_ZEROES */
	bool unmap;            /* write zeroes may give space back, as config space has it */
	char id[VQL_ID_BYTES]; /* zero-padded, not zero-terminated */
};

/* Where a request is answered. */
struct vql_blk_answer {
	__u8 *status;
	__u64 data_bytes; /* device-writable bytes ahead of the status byte */
};

enum vql_blk_verdict {
	VQL_BLK_SUBMIT,   /* @io is to be executed */
	VQL_BLK_ANSWERED, /* @io.status is final */
};

/* Copy up to @bytes from the front of @seg[0…n), once, and move past them. Returns bytes copied. */
VQL_INLINE __u64 vql_seg_pull(struct vql_seg **seg, __u32 *n, void *to, __u64 bytes)
{
	__u64 done = 0;

	while (done < bytes && *n) {
		struct vql_seg *s = *seg;
		__u64 now = s->bytes < bytes - done ? s->bytes : bytes - done;

		vql_read_bytes((__u8 *)to + done, s->base, now);
		done += now;
		s->base = (__u8 *)s->base + now;
		s->bytes -= now;
		if (!s->bytes) {
			(*seg)++;
			(*n)--;
		}
	}
	return done;
}

/* Is [sector, sector + sectors) on the disk and made of whole blocks? */
VQL_INLINE bool vql_blk_range_valid(const struct vql_blk_disk *d, __u64 sector, __u64 sectors)
{
	const __u64 mask = (d->block_bytes >> VQL_SECTOR_SHIFT) - 1;

	return !((sector | sectors) & mask) && sectors <= d->sectors &&
	       sector <= d->sectors - sectors;
}

VQL_INLINE int vql_blk_answered(struct vql_io *io, enum vql_status status)
{
	io->status = (__u8)status;
	return VQL_BLK_ANSWERED;
}

VQL_INLINE int vql_blk_parse_rw(const struct vql_chain *c, const struct vql_blk_disk *d,
				struct vql_io *io, __u64 bytes)
{
	io->bytes = bytes;
	if (c->truncated || bytes % VQL_SECTOR_BYTES || bytes > VQL_MAX_IO_BYTES ||
	    !vql_blk_range_valid(d, io->sector, bytes >> VQL_SECTOR_SHIFT) ||
	    (io->op == VQL_OP_WRITE && d->read_only)) {
		io->bytes = 0;
		return vql_blk_answered(io, VQL_STATUS_IOERR);
	}
	if (!bytes)
		return vql_blk_answered(io, VQL_STATUS_OK);
	return VQL_BLK_SUBMIT;
}

/* DISCARD and WRITE_ZEROES: one range (max_discard_seg and max_write_zeroes_seg are 1). */
VQL_INLINE int vql_blk_parse_range(const struct vql_blk_disk *d, struct vql_io *io,
				   struct vql_seg *seg, __u32 nsegs, __u64 bytes)
{
	const bool discard = io->op == VQL_OP_DISCARD;
	struct vql_blk_range range;

	if (discard ? !d->discard : !d->write_zeroes)
		return vql_blk_answered(io, VQL_STATUS_UNSUPP);
	if (bytes < sizeof(range) || bytes % sizeof(range) || d->read_only)
		return vql_blk_answered(io, VQL_STATUS_IOERR);
	if (bytes > sizeof(range))
		return vql_blk_answered(io, VQL_STATUS_UNSUPP);
	if (vql_seg_pull(&seg, &nsegs, &range, sizeof(range)) != sizeof(range))
		return vql_blk_answered(io, VQL_STATUS_IOERR);
	/* virtio 1.3 §5.2.6.2: unknown flags, and unmap on a discard, are UNSUPP. */
	if (range.flags & ~(discard ? 0u : (__u32)VQL_BLK_WRITE_ZEROES_F_UNMAP))
		return vql_blk_answered(io, VQL_STATUS_UNSUPP);
	if (range.sectors > VQL_MAX_DISCARD_SECTORS ||
	    !vql_blk_range_valid(d, range.sector, range.sectors))
		return vql_blk_answered(io, VQL_STATUS_IOERR);
	io->sector = range.sector;
	io->bytes = (__u64)range.sectors << VQL_SECTOR_SHIFT;
	/* A wish: the device may ignore it (virtio 1.3 §5.2.6.2), and does so on a disk that keeps its space. */
	io->flags = d->unmap && range.flags & VQL_BLK_WRITE_ZEROES_F_UNMAP ? VQL_IO_UNMAP : 0;
	if (!range.sectors)
		return vql_blk_answered(io, VQL_STATUS_OK);
	return VQL_BLK_SUBMIT;
}

VQL_INLINE int vql_blk_get_id(const struct vql_chain *c, const struct vql_blk_disk *d,
			      struct vql_io *io, struct vql_seg *seg, __u32 nsegs, __u64 data_bytes)
{
	__u64 done = 0;

	io->seg = seg; /* written here, so that dirty logging sees it as it sees a READ */
	io->nsegs = nsegs;
	if (c->truncated)
		return vql_blk_answered(io, VQL_STATUS_IOERR);
	if (data_bytes > VQL_ID_BYTES)
		data_bytes = VQL_ID_BYTES;
	for (; nsegs && done < data_bytes; seg++, nsegs--) {
		__u64 now = seg->bytes < data_bytes - done ? seg->bytes : data_bytes - done;

		memcpy(seg->base, d->id + done, now);
		done += now;
	}
	io->bytes = done;
	return vql_blk_answered(io, VQL_STATUS_OK);
}

/*
 * Parse @c, whose segments are @seg. The header is gathered across any split and read once; the segments are
 * trimmed in place to the data (header cut from the front, status byte from the end), and @io->seg points into
 * them. Returns VQL_BLK_SUBMIT, VQL_BLK_ANSWERED, or -VQL_RING_NO_STATUS.
 */
VQL_INLINE int vql_blk_parse_segs(const struct vql_chain *c, struct vql_seg *seg,
				  const struct vql_blk_disk *d, struct vql_io *io,
				  struct vql_blk_answer *answer)
{
	struct vql_seg *out = seg, *in = seg + c->nout;
	__u32 nout = c->nout, nin = c->nin;
	struct vql_blk_hdr hdr;

	io->sector = 0;
	io->bytes = 0;
	io->seg = NULL;
	io->nsegs = 0;
	io->op = VQL_OP_OTHER;
	io->flags = 0;
	io->status = VQL_STATUS_OK;
	io->reserved = 0;
	if (VQL_UNLIKELY(!c->in_bytes))
		return -VQL_RING_NO_STATUS;
	answer->status = c->last_in;
	answer->data_bytes = c->in_bytes - 1;
	/* Where segments were left out, the last one kept is not the one with the status. */
	if (VQL_LIKELY(!c->truncated && nin) && !--in[nin - 1].bytes)
		nin--;
	if (VQL_LIKELY(nout && out->bytes == sizeof(hdr))) { /* as most drivers have it */
		vql_read_bytes(&hdr, out->base, sizeof(hdr));
		out++;
		nout--;
	} else if (c->out_bytes < sizeof(hdr) ||
		   vql_seg_pull(&out, &nout, &hdr, sizeof(hdr)) != sizeof(hdr)) {
		return vql_blk_answered(io, VQL_STATUS_IOERR);
	}

	io->sector = hdr.sector;
	switch (hdr.type) {
	case VQL_BLK_T_IN:
		io->op = VQL_OP_READ;
		io->seg = in;
		io->nsegs = nin;
		return vql_blk_parse_rw(c, d, io, answer->data_bytes);
	case VQL_BLK_T_OUT:
		io->op = VQL_OP_WRITE;
		io->seg = out;
		io->nsegs = nout;
		return vql_blk_parse_rw(c, d, io, c->out_bytes - sizeof(hdr));
	case VQL_BLK_T_FLUSH:
		io->op = VQL_OP_FLUSH;
		io->sector = 0;
		return VQL_BLK_SUBMIT;
	case VQL_BLK_T_DISCARD:
	case VQL_BLK_T_WRITE_ZEROES:
		io->op = hdr.type == VQL_BLK_T_DISCARD ? VQL_OP_DISCARD : VQL_OP_WRITE_ZEROES;
		return vql_blk_parse_range(d, io, out, nout, c->out_bytes - sizeof(hdr));
	case VQL_BLK_T_GET_ID:
		io->op = VQL_OP_GET_ID;
		return vql_blk_get_id(c, d, io, in, nin, answer->data_bytes);
	default: return vql_blk_answered(io, VQL_STATUS_UNSUPP);
	}
}

/* … whose segments are @c->seg. */
VQL_INLINE int vql_blk_parse(struct vql_chain *c, const struct vql_blk_disk *d, struct vql_io *io,
			     struct vql_blk_answer *answer)
{
	return vql_blk_parse_segs(c, c->seg, d, io, answer);
}

/*
 * The request that nearly all are, in one go: a read or write of one buffer, made of three
 * descriptors (header, data, status), all of them in the region of @m's hint. True: @io and @answer
 * are what vql_chain_walk() and vql_blk_parse() would make of it, VQL_BLK_SUBMIT; of @c, seg[0] (the
 * data) and nout are valid. False: it is not such a request, or a bad one, and nothing is said of
 * it; who then walks it reads it again.
 */
VQL_INLINE bool vql_blk_take_plain(const struct vql_ring *r, const struct vql_mem *m, __u16 head,
				   const struct vql_blk_disk *disk, struct vql_chain *c,
				   struct vql_io *io, struct vql_blk_answer *answer)
{
	/* Length and flags of a descriptor's second half. */
	const __u64 shape = 0xffffffffffffull, len = 0xffffffffull;
	const struct vql_region *near = &m->region[m->hint];
	const __u8 *d0, *d1, *d2; /* descriptors; a table may lie at any address */
	__u64 header, data, status, hi0, hi1, hi2, bytes, sector;
	bool in;

	if (VQL_UNLIKELY(m->hint >= m->nregions || head >= r->num || near->flags))
		return false;
	d0 = (const __u8 *)&r->desc[head];
	hi0 = vql_read_u64(d0 + 8);
	if ((__u16)(hi0 >> 32) == VQL_DESC_F_INDIRECT) {
		const __u64 offset = vql_read_u64(d0) - near->guest;

		if (VQL_UNLIKELY(!r->indirect || (hi0 & len) != 3 * sizeof(struct vql_desc) ||
				 near->bytes < 3 * sizeof(struct vql_desc) ||
				 offset > near->bytes - 3 * sizeof(struct vql_desc)))
			return false;
		d0 = near->host + offset;
		d1 = d0 + sizeof(struct vql_desc);
		d2 = d1 + sizeof(struct vql_desc);
		hi0 = vql_read_u64(d0 + 8);
		hi1 = vql_read_u64(d1 + 8);
		if (VQL_UNLIKELY(hi0 >> 48 != 1 || hi1 >> 48 != 2))
			return false;
	} else {
		if (VQL_UNLIKELY(hi0 >> 48 >= r->num))
			return false;
		d1 = (const __u8 *)&r->desc[hi0 >> 48];
		hi1 = vql_read_u64(d1 + 8);
		if (VQL_UNLIKELY(hi1 >> 48 >= r->num))
			return false;
		d2 = (const __u8 *)&r->desc[hi1 >> 48];
	}
	hi2 = vql_read_u64(d2 + 8);
	bytes = hi1 & len;
	in = hi1 & (__u64)VQL_DESC_F_WRITE << 32;
	if (VQL_UNLIKELY((hi0 & shape) !=
				 ((__u64)VQL_DESC_F_NEXT << 32 | sizeof(struct vql_blk_hdr)) ||
			 (hi1 & shape & ~len & ~((__u64)VQL_DESC_F_WRITE << 32)) !=
				 (__u64)VQL_DESC_F_NEXT << 32 ||
			 (hi2 & shape) != ((__u64)VQL_DESC_F_WRITE << 32 | 1)))
		return false;
	header = vql_read_u64(d0) - near->guest;
	data = vql_read_u64(d1) - near->guest;
	status = vql_read_u64(d2) - near->guest;
	if (VQL_UNLIKELY(header >= near->bytes ||
			 near->bytes - header < sizeof(struct vql_blk_hdr) || data >= near->bytes ||
			 near->bytes - data < bytes || status >= near->bytes))
		return false;
	sector = vql_read_u64(near->host + header + offsetof(struct vql_blk_hdr, sector));
	if (VQL_UNLIKELY((__u32)vql_read_u64(near->host + header) !=
				 (in ? VQL_BLK_T_IN : VQL_BLK_T_OUT) ||
			 !bytes || bytes % VQL_SECTOR_BYTES || bytes > VQL_MAX_IO_BYTES ||
			 (!in && disk->read_only) ||
			 !vql_blk_range_valid(disk, sector, bytes >> VQL_SECTOR_SHIFT)))
		return false;
	c->seg[0].base = near->host + data;
	c->seg[0].bytes = bytes;
	c->nout = !in;
	io->sector = sector;
	io->bytes = bytes;
	io->seg = c->seg;
	io->nsegs = 1;
	io->op = in ? VQL_OP_READ : VQL_OP_WRITE;
	io->flags = 0;
	io->status = VQL_STATUS_OK;
	io->reserved = 0;
	answer->status = near->host + status;
	answer->data_bytes = in ? bytes : 0;
	return true;
}

/*
 * Write the status byte and return used.len: how many bytes were written from the beginning of the
 * device-writable part (virtio 1.3 §2.7.8.2). The status comes last, so it counts only when all the
 * data ahead of it was written.
 */
VQL_INLINE __u32 vql_blk_finish(const struct vql_io *io, const struct vql_blk_answer *answer)
{
	__u64 written = 0;

	vql_write_once(answer->status, io->status);
	if (io->status == VQL_STATUS_OK && (io->op == VQL_OP_READ || io->op == VQL_OP_GET_ID))
		written = io->bytes;
	return (__u32)(written == answer->data_bytes ? written + 1 : written);
}

#endif
