/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps that pollers, BPF programs and bpftool share, each defined once. The
 * daemon loads them from maps.bpf.o, sized for the disk, and pins them:
 *   stats    BPF_DIR/NAME/stats    vqlane/stats.h says whose its values are
 *   extents  BPF_DIR/NAME/extents  one word per chunk (vqlane/remap.h)
 *   disks    BPF_DIR/disks         who is in which slot (vqlane/maps.h)
 *   tables   BPF_DIR/tables        slot → the disk's extents
 *   stats_tables  BPF_DIR/stats_tables  slot → its stats
 * Those of a disk that lives on in the kernel module outlive the daemon, and the next one takes them over.
 */
#ifndef VQLANE_MAPS_BPF_H
#define VQLANE_MAPS_BPF_H

#include <linux/bpf.h>
#include <vqlane/limits.h>
#include <vqlane/maps.h>
#include <vqlane/stats.h>
#include <bpf/bpf_helpers.h>

struct stats_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/* INNER_MAP: the outer map takes arrays of any length. */
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vql_disk_stats);
} stats SEC(".maps");

struct extents_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} extents SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, VQL_MAX_DISKS);
	__type(key, __u32);
	__type(value, struct vql_disk_entry);
} disks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VQL_MAX_DISKS);
	__type(key, __u32);
	__array(values, struct extents_map);
} tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, VQL_MAX_DISKS);
	__type(key, __u32);
	__array(values, struct stats_map);
} stats_tables SEC(".maps");

#endif
