// SPDX-License-Identifier: GPL-2.0-only
/*
 * How the kernel module remaps: as the poller does, by the disk's extent table. It answers for all disks
 * that have no policy of their own.
 */
#include "lookup.bpf.h"

SEC("struct_ops/remap")
int BPF_PROG(remap, struct vqlane_remap_req *req)
{
	return vql_table_lookup(req, req->sector, req->sectors);
}

SEC(".struct_ops.link")
struct vqlane_remap_ops remap_default = {.remap = (void *)remap};

char LICENSE[] SEC("license") = "GPL";
