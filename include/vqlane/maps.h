/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the maps of a daemon have in common: which disk is where. A disk's slot, its index here, is its
 * key in all maps that have one value for each disk, and what a BPF program is told of it.
 */
#ifndef VQLANE_MAPS_H
#define VQLANE_MAPS_H

#include "limits.h"
#include "types.h"

/*
 * Of the layout of all pinned maps and their values, which outlive the daemon that made them: add one
 * with every change of one, and daemons of different versions do not take over from each other.
 */
#define VQL_MAPS_VERSION 3

/*
 * The value of map disks. The daemon writes it, before the disk's slot in map tables is filled and after
 * that was emptied, and programs that ran in between have ended. So who looks into tables first and
 * here second has a table and its chunk size, never one's table and another's size.
 */
struct vql_disk_entry {
	__u32 version; /* VQL_MAPS_VERSION, of free slots as well */
	__u32 chunk_shift;
	__u64 reserved[7];
	char name[VQL_DISK_NAME_BYTES]; /* name[0] == 0: the slot is free */
};
VQL_STATIC_ASSERT(sizeof(struct vql_disk_entry) == 128,
		  "what each request needs in one cache line");

#endif
