/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Guest memory: guest addresses (physical or IOVA) → this address space.
 * The table is immutable while a queue uses it; who replaces it stops the
 * queues first.
 */
#ifndef VQLANE_MEM_H
#define VQLANE_MEM_H

#include "barrier.h"
#include "io.h"
#include "types.h"

enum {
	VQL_MEM_READ_ONLY = 1, /* devices may read it only: a write here may not even be possible */
};

struct vql_region {
	__u64 guest; /* first guest address */
	__u64 bytes; /* > 0; guest + bytes does not wrap */
	__u8 *host;  /* where it is mapped here */
	__u32 flags; /* VQL_MEM_… */
};

/* Regions sorted by guest address, none overlapping; hint = index of the last hit, the owner's own.
 */
struct vql_mem {
	const struct vql_region *region;
	__u32 nregions;
	__u32 hint;
};

/* The region that holds @guest, or NULL. O(log n); O(1) while addresses stay in one region. */
VQL_INLINE const struct vql_region *vql_mem_find(struct vql_mem *m, __u64 guest)
{
	const struct vql_region *r;
	__u32 lo = 0, hi = m->nregions;

	if (VQL_LIKELY(m->hint < hi)) {
		r = &m->region[m->hint];
		if (VQL_LIKELY(guest - r->guest < r->bytes))
			return r;
	}
	while (lo < hi) {
		__u32 mid = lo + (hi - lo) / 2;

		r = &m->region[mid];
		if (guest < r->guest) {
			hi = mid;
		} else if (guest - r->guest >= r->bytes) {
			lo = mid + 1;
		} else {
			m->hint = mid;
			return r;
		}
	}
	return NULL;
}

/* May the device write to @r, if it is to (@write)? */
VQL_INLINE bool vql_mem_allows(const struct vql_region *r, bool write)
{
	return VQL_LIKELY(!write || !(r->flags & VQL_MEM_READ_ONLY));
}

/*
 * Translate @bytes (> 0) at @guest when they lie in one region, for reading or also for writing.
 * Returns the address here, or NULL when any byte is outside, in another region, or @write and the
 * region is read-only.
 */
VQL_INLINE void *vql_mem_flat(struct vql_mem *m, __u64 guest, __u64 bytes, bool write)
{
	const struct vql_region *r = vql_mem_find(m, guest);

	if (!r || r->bytes - (guest - r->guest) < bytes || !vql_mem_allows(r, write))
		return NULL;
	return r->host + (guest - r->guest);
}

/*
 * Translate @bytes at @guest, across adjacent regions where need be, into at most @room segments.
 * Returns the number of segments written to @seg; -EFAULT: some byte is in no region, or in a
 * read-only one though @write, or the range wraps; -E2BIG: more than @room segments.
 */
VQL_INLINE int vql_mem_map(struct vql_mem *m, __u64 guest, __u64 bytes, bool write,
			   struct vql_seg *seg, __u32 room)
{
	__u32 n = 0;

	if (bytes && guest + (bytes - 1) < guest)
		return -EFAULT;
	while (bytes) {
		const struct vql_region *r = vql_mem_find(m, guest);
		__u64 here;

		if (!r || !vql_mem_allows(r, write))
			return -EFAULT;
		if (n == room)
			return -E2BIG;
		here = r->bytes - (guest - r->guest);
		if (here > bytes)
			here = bytes;
		seg[n].base = r->host + (guest - r->guest);
		seg[n].bytes = here;
		n++;
		guest += here;
		bytes -= here;
	}
	return (int)n;
}

/*
 * One load that the compiler can neither repeat nor split, at any alignment: guest memory is read
 * once.
 */
struct vql_unaligned_u64 {
	__u64 v;
} __attribute__((packed, may_alias));

VQL_INLINE __u64 vql_read_u64(const void *p)
{
	return ((const volatile struct vql_unaligned_u64 *)p)->v;
}

/* Copy @bytes of guest memory. What is read from @to afterwards is the copy, never @from again. */
VQL_INLINE void vql_read_bytes(void *to, const void *from, __u64 bytes)
{
	memcpy(to, from, bytes);
	vql_compiler_barrier();
}

#endif
