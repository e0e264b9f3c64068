/* SPDX-License-Identifier: GPL-2.0-only */
/* What mspace.c (pages and their mapping) and attach.c (their DMA addresses) share. */
#ifndef _VQLANE_KMOD_MSPACE_H
#define _VQLANE_KMOD_MSPACE_H

#include <linux/list.h>
#include <linux/mm_types.h>
#include <linux/refcount.h>
#include "mem/mem.h"
#include "nvme/nvme.h"

/* The longest chunk, so that no single DMA mapping is larger: 1 GiB. */
#define VQL_MAX_CHUNK_PAGES (1u << (30 - PAGE_SHIFT))

/*
 * Physically contiguous pages of a guest. Belongs to all mspaces in which it stands, so that a new
 * map of the same memory costs neither page references nor DMA mappings.
 */
struct vql_chunk {
	refcount_t refs; /* one for each mspace */
	u32 pages;
	bool read_only; /* for devices, and for the daemon */
	bool pinned;    /* by pin_user_pages(); else by a reference on each folio */
	struct page *first;
	struct list_head dma; /* struct chunk_dma (attach.c); under vql_attach_lock */
};

/* A chunk's place in one mspace. */
struct vql_placed_chunk {
	struct vql_chunk *chunk;
	u64 first_page; /* in the mspace */
	u64 guest;      /* address of its first byte */
};

/* One guest memory. Immutable once made, but for its end. */
struct vql_mspace {
	refcount_t refs;       /* files, the disk, views */
	refcount_t page_users; /* views, until they are unmapped; and itself until it is revoked */
	bool user;             /* made of its caller's mapping; not for mmap */
	bool revoked;          /* under vql_attach_lock; its chunks are views' alone to know */
	u64 pages;
	u32 nchunks;
	u32 room; /* of @chunks, while it is being made */
	u32 nregions;
	struct vql_placed_chunk *chunks; /* by first_page and by guest address alike */
	struct vql_mregion *regions;     /* what VQL_IOC_MSPACE_REGIONS tells */
	struct list_head files;          /* under vql_attach_lock */
	struct list_head views;          /* attach.c; under vql_attach_lock */
};

/*
 * mspace_file.c: the mspace of a file, under vql_attach_lock: -EINVAL when it is no mspace's file, -ENODEV
 * when the file was closed off.
 */
struct vql_mspace *vql_mspace_of_file(const struct file *file);

/* A reference on its pages; with the last one they are let go. */
void vql_mspace_get_pages(struct vql_mspace *ms);
void vql_mspace_put_pages(struct vql_mspace *ms);

/* attach.c, all under vql_attach_lock, but where they say without: */
/* A queue pair that is attached to @ms and not the module's own, with a reference, or NULL. */
struct vql_qpair *vql_attach_any_qpair(struct vql_mspace *ms);
/* End @qp's attachment to @ms (@qp NULL: all of them). Puts what is to be freed on @ended. */
void vql_attach_end(struct vql_mspace *ms, struct vql_qpair *qp, struct list_head *ended);
/* Without: make all attachments of @old on @ms as well; one that fails is told in the log. */
void vql_attach_carry_over(struct vql_mspace *old, struct vql_mspace *ms);
/* Without: unmap and free what vql_attach_end() left. */
void vql_attach_free_ended(struct list_head *ended);

#endif
