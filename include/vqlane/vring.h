/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The device side of a split virtqueue (virtio 1.3 §2.7).
 *
 * All three parts of the ring are memory that a hostile driver writes while we
 * read. So: indexes and descriptors are read once, into copies; copies are
 * checked; nothing is read again. One thread at a time owns a struct vql_ring.
 *
 * Ordering, against the driver on the other side:
 *  - load_acquire(avail->idx) pairs with the driver's write barrier before it
 *    moves idx: ring entries and descriptors are read after it.
 *  - store_release(used->idx) pairs with the driver's read barrier after it
 *    sees idx: data, status and used entries are written before it.
 *  - used->idx, mb, used_event here; used_event, mb, used->idx in the driver:
 *    one of the two sees the other's store, so no interrupt is lost.
 *  - avail_event, mb, avail->idx here; avail->idx, mb, avail_event in the
 *    driver: likewise no kick is lost.
 *
 * Who takes a ring over, or gets another way to interrupt, cannot know whether
 * the last used->idx was signalled: a server may have died between the two. It
 * interrupts once, at once, whatever the driver says of interrupts; nothing here
 * does that. From its first vql_ring_publish() on the driver's wishes hold.
 */
#ifndef VQLANE_VRING_H
#define VQLANE_VRING_H

#include "barrier.h"
#include "io.h"
#include "limits.h"
#include "mem.h"
#include "types.h"

enum {
	VQL_DESC_F_NEXT = 1,
	VQL_DESC_F_WRITE = 2,
	VQL_DESC_F_INDIRECT = 4,
	VQL_USED_F_NO_NOTIFY = 1,
	VQL_AVAIL_F_NO_INTERRUPT = 1,
};

struct vql_desc {
	__u64 addr;
	__u32 len;
	__u16 flags;
	__u16 next;
};
VQL_STATIC_ASSERT(sizeof(struct vql_desc) == 16, "virtio 1.3 §2.7.5");

/* The arrays have the largest size; a ring has num entries of it, and the event index behind them.
 */
struct vql_avail {
	__u16 flags;
	__u16 idx;
	__u16 ring[VQL_MAX_QUEUE_SIZE + 1]; /* ring[num] is used_event */
};
VQL_STATIC_ASSERT(offsetof(struct vql_avail, ring) == 4, "virtio 1.3 §2.7.6");

struct vql_used_elem {
	__u32 id;
	__u32 len;
};

struct vql_used {
	__u16 flags;
	__u16 idx;
	struct vql_used_elem ring[VQL_MAX_QUEUE_SIZE + 1]; /* avail_event is in ring[num] */
};
VQL_STATIC_ASSERT(offsetof(struct vql_used, ring) == 4, "virtio 1.3 §2.7.8");

/* Bytes of each part of a ring of @num entries, the event index included (virtio 1.3 §2.7). */
VQL_INLINE __u64 vql_desc_bytes(__u32 num) { return 16ull * num; }
VQL_INLINE __u64 vql_avail_bytes(__u32 num) { return 6ull + 2ull * num; }
VQL_INLINE __u64 vql_used_bytes(__u32 num) { return 6ull + 8ull * num; }

VQL_INLINE bool vql_queue_size_valid(__u32 num)
{
	return num >= VQL_MIN_QUEUE_SIZE && num <= VQL_MAX_QUEUE_SIZE && !(num & (num - 1));
}

struct vql_ring {
	const struct vql_desc *desc;
	struct vql_avail *avail;
	struct vql_used *used;
	__u16 num;        /* power of two */
	__u16 next_avail; /* first available entry not taken yet */
	__u16 next_used;  /* where the next used entry goes */
	__u16 signalled;  /* next_used at the last decision to interrupt */
	bool event_idx;   /* VIRTIO_F_EVENT_IDX was negotiated */
	bool indirect;    /* VIRTIO_F_INDIRECT_DESC was negotiated */
};

/* Why a chain or a ring cannot be served. A ring that reports one of these is stopped. */
enum vql_ring_error {
	VQL_RING_OK = 0,
	VQL_RING_BAD_IDX,      /* avail->idx ran ahead by more than the queue size */
	VQL_RING_BAD_HEAD,     /* head or next outside the table */
	VQL_RING_LOOP,         /* more descriptors than the table has */
	VQL_RING_BAD_INDIRECT, /* not negotiated, nested, chained on, or of odd size */
	VQL_RING_BAD_ORDER,    /* readable after writable */
	VQL_RING_BAD_ADDRESS,  /* outside guest memory, or to be written where it is read-only */
	VQL_RING_BAD_LENGTH,   /* the chain's length overflows 32 bits */
	VQL_RING_NO_STATUS,    /* no writable byte to answer in */
	VQL_RING_ERRORS,
};

VQL_INLINE const char *vql_ring_error_text(int error)
{
	switch (error) {
	case VQL_RING_OK: return "ok";
	case VQL_RING_BAD_IDX: return "available index ran ahead by more than the queue size";
	case VQL_RING_BAD_HEAD: return "descriptor index out of range";
	case VQL_RING_LOOP: return "descriptor chain loops";
	case VQL_RING_BAD_INDIRECT: return "bad indirect descriptor";
	case VQL_RING_BAD_ORDER: return "readable descriptor after a writable one";
	case VQL_RING_BAD_ADDRESS:
		return "descriptor outside guest memory, or a writable one in read-only memory";
	case VQL_RING_BAD_LENGTH: return "descriptor chain longer than 4 GiB";
	case VQL_RING_NO_STATUS: return "no writable byte for the status";
	default: return "unknown error";
	}
}

/* A chain, translated: readable segments first, writable ones after. */
struct vql_chain {
	__u64 out_bytes; /* device-readable bytes, all counted */
	__u64 in_bytes;  /* device-writable bytes, all counted */
	__u8 *last_in;   /* last writable byte, also when segments were left out; NULL: none */
	__u32 nout;      /* readable segments in seg[] */
	__u32 nin;       /* writable segments behind them */
	bool truncated;  /* the chain has more segments than there was room for */
	struct vql_seg seg[VQL_MAX_SEGS];
};

/* Entries the driver has made available and we have not taken: 0…num, or -VQL_RING_BAD_IDX. */
VQL_INLINE int vql_ring_pending(const struct vql_ring *r)
{
	__u16 n = (__u16)(vql_load_acquire(&r->avail->idx) - r->next_avail);

	return VQL_LIKELY(n <= r->num) ? (int)n : -VQL_RING_BAD_IDX;
}

/*
 * Head of the next available chain, without taking it. Only after vql_ring_pending() > 0; checked
 * by the walk.
 */
VQL_INLINE __u16 vql_ring_peek(const struct vql_ring *r)
{
	return vql_read_once(&r->avail->ring[r->next_avail & (r->num - 1)]);
}

/* One descriptor, read once. */
VQL_INLINE struct vql_desc vql_desc_read(const void *p)
{
	const __u64 lo = vql_read_u64(p);
	const __u64 hi = vql_read_u64((const __u8 *)p + 8);
	struct vql_desc d;

	d.addr = lo;
	d.len = (__u32)hi;
	d.flags = (__u16)(hi >> 32);
	d.next = (__u16)(hi >> 48);
	return d;
}

/*
 * Ask for what the next @n chains (at most VQL_BATCH of those pending) begin with, for all of them
 * at once: walked one by one, each would wait for the other CPU's cache. That is the descriptors,
 * an indirect table's first ones, and the first buffer, for writing, since drivers keep a request's
 * status byte beside its header. And the used entries that will answer them. Nothing that is read
 * here is believed: it is read again when it is used.
 */
VQL_INLINE void vql_ring_prefetch(const struct vql_ring *r, const struct vql_mem *m, __u32 n)
{
	const __u32 mask = r->num - 1u;
	const struct vql_region *near = &m->region[m->hint];
	const __u8 *table[VQL_BATCH];
	__u32 i, tables = 0;
	__u64 offset;

	if (VQL_UNLIKELY(m->hint >= m->nregions || near->bytes < sizeof(struct vql_desc)))
		return;
	for (i = 0; i < n; i++) {
		const __u16 head = vql_read_once(&r->avail->ring[(r->next_avail + i) & mask]);
		const struct vql_desc d = vql_desc_read(&r->desc[head & mask]);

		offset = d.addr - near->guest;
		if (VQL_UNLIKELY(offset > near->bytes - sizeof(struct vql_desc)))
			continue;
		if (d.flags & VQL_DESC_F_INDIRECT) {
			table[tables] = near->host + offset;
			VQL_PREFETCH(table[tables]);
			tables++;
		} else {
			VQL_PREFETCH_WRITE(near->host + offset);
		}
	}
	for (i = 0; i < n; i += 64 / sizeof(struct vql_used_elem))
		VQL_PREFETCH_WRITE(&r->used->ring[(r->next_used + i) & mask]);
	for (i = 0; i < tables; i++) {
		offset = vql_read_u64(table[i]) - near->guest;
		if (VQL_LIKELY(offset < near->bytes))
			VQL_PREFETCH_WRITE(near->host + offset);
	}
}

/* An indirect table that is not in the region of @m's hint; NULL: no region holds it as a whole. */
VQL_COLD const __u8 *vql_desc_find(struct vql_mem *m, const struct vql_desc *d)
{
	return (const __u8 *)vql_mem_flat(m, d->addr, d->len, false);
}

/* Entry @at of an indirect table that no region holds as a whole; the entry may be in two. */
VQL_COLD int vql_desc_read_split(struct vql_mem *m, __u64 table, __u32 at, struct vql_desc *d)
{
	const __u64 addr = table + (__u64)at * sizeof(*d);
	const void *p = vql_mem_flat(m, addr, sizeof(*d), false);
	struct vql_seg half[2];

	if (p) {
		*d = vql_desc_read(p);
		return 0;
	}
	if (vql_mem_map(m, addr, sizeof(*d), false, half, 2) != 2)
		return -VQL_RING_BAD_ADDRESS;
	vql_read_bytes(d, half[0].base, half[0].bytes);
	vql_read_bytes((__u8 *)d + half[0].bytes, half[1].base, half[1].bytes);
	return 0;
}

/*
 * Add @d's memory, which is not all in the region of @m's hint, or has no room, as segments at @seg, where there
 * is room for @room of @c's. @last becomes its last byte. Returns the number of segments added, or
 * -enum vql_ring_error.
 */
VQL_COLD int vql_chain_add_split(struct vql_chain *c, struct vql_mem *m, const struct vql_desc *d,
				 struct vql_seg *seg, __u32 room, __u8 **last)
{
	const bool in = d->flags & VQL_DESC_F_WRITE;
	int added = vql_mem_map(m, d->addr, d->len, in, seg, c->truncated ? 0 : room);

	if (added > 0) {
		*last = (__u8 *)seg[added - 1].base + seg[added - 1].bytes - 1;
		return added;
	}
	if (added != -E2BIG)
		return -VQL_RING_BAD_ADDRESS;
	c->truncated = true; /* too long to serve, yet it can be answered */
	*last = (__u8 *)vql_mem_flat(m, d->addr + d->len - 1, 1, in);
	return *last ? 0 : -VQL_RING_BAD_ADDRESS;
}

/*
 * Walk the chain that starts at @head and translate it into @c and @seg, which has room for @room segments and
 * counts in place of @c->seg (all fields are written but seg[]). Bounded: at most num descriptors in the ring's table, VQL_MAX_CHAIN in an
 * indirect one. Returns 0 or -enum vql_ring_error; after an error nothing in @c is to be used.
 * A hostile driver can make a head available again while it is in flight: who keeps state per head
 * checks for that.
 *
 * The path of a request that is like most keeps all it knows in registers: descriptors in one
 * table, each one's memory in the region that the last request's was in.
 */
VQL_INLINE int vql_chain_walk_into(const struct vql_ring *r, struct vql_mem *m, __u16 head,
				   struct vql_chain *c, struct vql_seg *seg, __u32 room)
{
	const __u8 *table = (const __u8 *)r->desc; /* an indirect one may lie at any address */
	__u32 entries = r->num, seen = 0, at = head, n = 0, nout = 0;
	__u64 out_bytes = 0, in_bytes = 0, split_table = 0;
	__u8 *last_in = NULL;
	bool indirect = false;
	const struct vql_region none = {0, 0, NULL, 0};
	const struct vql_region *near =
		VQL_LIKELY(m->hint < m->nregions) ? &m->region[m->hint] : &none;

	c->truncated = false;
	for (;;) {
		struct vql_desc d;
		__u64 offset;

		if (VQL_UNLIKELY(at >= entries))
			return -VQL_RING_BAD_HEAD;
		if (VQL_LIKELY(table)) {
			d = vql_desc_read(table + (__u64)at * sizeof(d));
		} else {
			int err = vql_desc_read_split(m, split_table, at, &d);

			if (err)
				return err;
		}
		if (d.flags & VQL_DESC_F_INDIRECT) {
			/* virtio 1.3 §2.7.5.3.1: INDIRECT and NEXT exclude each other. */
			if (VQL_UNLIKELY(indirect || !r->indirect || d.flags & VQL_DESC_F_NEXT))
				return -VQL_RING_BAD_INDIRECT;
			indirect = true;
			entries = (__u32)(d.len / sizeof(struct vql_desc));
			if (VQL_UNLIKELY(!entries || d.len % sizeof(struct vql_desc) ||
					 entries > VQL_MAX_CHAIN))
				return -VQL_RING_BAD_INDIRECT;
			if (VQL_UNLIKELY(d.addr + (d.len - 1) < d.addr))
				return -VQL_RING_BAD_ADDRESS;
			offset = d.addr - near->guest;
			if (VQL_LIKELY(d.len <= near->bytes && offset <= near->bytes - d.len))
				table = near->host + offset;
			else
				table = vql_desc_find(m, &d);
			split_table = d.addr;
			at = 0;
			seen = 0;
			continue;
		}
		if (VQL_LIKELY(d.len)) { /* else nothing to read or write; not forbidden */
			const bool in = d.flags & VQL_DESC_F_WRITE;
			__u8 *last;

			if (VQL_UNLIKELY(!in && in_bytes))
				return -VQL_RING_BAD_ORDER;
			if (VQL_UNLIKELY(out_bytes + in_bytes + d.len > 0xffffffffull))
				return -VQL_RING_BAD_LENGTH;
			offset = d.addr - near->guest;
			if (VQL_LIKELY(d.len <= near->bytes && offset <= near->bytes - d.len &&
				       n < room && !c->truncated && vql_mem_allows(near, in))) {
				seg[n].base = near->host + offset;
				seg[n].bytes = d.len;
				last = near->host + offset + (d.len - 1);
				n++;
			} else {
				int added = vql_chain_add_split(c, m, &d, seg + n, room - n, &last);

				if (VQL_UNLIKELY(added < 0))
					return added;
				n += (__u32)added;
				near = &m->region[m->hint];
			}
			if (in) {
				in_bytes += d.len;
				last_in = last;
			} else {
				out_bytes += d.len;
				nout = n;
			}
		}
		if (!(d.flags & VQL_DESC_F_NEXT))
			break;
		if (VQL_UNLIKELY(++seen == entries))
			return -VQL_RING_LOOP;
		at = d.next;
	}
	c->out_bytes = out_bytes;
	c->in_bytes = in_bytes;
	c->last_in = last_in;
	c->nout = nout;
	c->nin = n - nout;
	return 0;
}

/* … into @c->seg. */
VQL_INLINE int vql_chain_walk(const struct vql_ring *r, struct vql_mem *m, __u16 head,
			      struct vql_chain *c)
{
	return vql_chain_walk_into(r, m, head, c, c->seg, VQL_MAX_SEGS);
}

/* Write one used entry; the driver sees it at the next vql_ring_publish(). At most num between two.
 */
VQL_INLINE void vql_ring_push(struct vql_ring *r, __u16 head, __u32 len)
{
	struct vql_used_elem *e = &r->used->ring[r->next_used & (r->num - 1)];

	vql_write_once(&e->id, (__u32)head);
	vql_write_once(&e->len, len);
	r->next_used++;
}

/* Show the driver all entries pushed so far: one store for a whole batch. */
VQL_INLINE void vql_ring_publish(struct vql_ring *r)
{
	vql_store_release(&r->used->idx, r->next_used);
}

/* virtio 1.3 §2.7.7.2 and §2.7.10: does moving an index from @old to @now pass @event? */
VQL_INLINE bool vql_event_passed(__u16 event, __u16 now, __u16 old)
{
	return (__u16)(now - event - 1) < (__u16)(now - old);
}

/*
 * After vql_ring_publish(): does the driver want an interrupt for what was published since the last
 * call?
 */
VQL_INLINE bool vql_ring_should_interrupt(struct vql_ring *r)
{
	const __u16 old = r->signalled, now = r->next_used;

	if (old == now)
		return false;
	vql_mb(); /* used->idx before used_event and flags */
	r->signalled = now;
	if (r->event_idx)
		return vql_event_passed(vql_read_once(&r->avail->ring[r->num]), now, old);
	return !(vql_read_once(&r->avail->flags) & VQL_AVAIL_F_NO_INTERRUPT);
}

/*
 * Ask for a kick at the next available entry. Returns true when entries are there already: then no
 * kick may come for them, and the caller goes on serving instead of sleeping.
 */
VQL_INLINE bool vql_ring_arm(struct vql_ring *r)
{
	if (r->event_idx)
		vql_write_once((__u16 *)(void *)&r->used->ring[r->num], r->next_avail);
	else
		vql_write_once(&r->used->flags, (__u16)0);
	vql_mb(); /* avail_event and flags before avail->idx */
	return vql_load_acquire(&r->avail->idx) != r->next_avail;
}

/*
 * Ask for no kicks while we poll. With EVENT_IDX nothing is written: the old avail_event lies
 * behind the driver's index, so that it kicks at most once more in 65,536 requests.
 */
VQL_INLINE void vql_ring_disarm(struct vql_ring *r)
{
	if (!r->event_idx)
		vql_write_once(&r->used->flags, (__u16)VQL_USED_F_NO_NOTIFY);
}

#endif
