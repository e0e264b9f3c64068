// SPDX-License-Identifier: GPL-2.0-only
/*
 * A policy to start from: the first part of a disk is an image that its guest may not change, and the
 * part of it that is read most is read from a copy on a second drive.
 *
 *   [[disk]]
 *   extents = [{target = "nvme0", length = "32M"}, {target = "nvme1", length = "32M"}]
 *
 * The copy is a range of the disk as well, for a policy reaches what the disk does, and no more.
 */
#include "lookup.bpf.h"

/* In sectors of 512 bytes. */
#define PROTECTED 4096 /* from the disk's begin */
#define HOT 2048       /* from here on */
#define HOT_SECTORS 2048
#define COPY 65536 /* where its copy begins: 32 MiB */

SEC("struct_ops/remap")
int BPF_PROG(protect, struct vqlane_remap_req *req)
{
	__u64 sector = req->sector, sectors = req->sectors;

	if (req->op != VQL_OP_READ && sector < PROTECTED) {
		req->verdict = VQL_REFUSE; /* with req->status, which is IOERR already */
		return 0;
	}
	if (req->op != VQL_OP_READ || sector >= HOT + HOT_SECTORS)
		return vql_table_lookup(req, sector, sectors);

	/* An answer is for one place: up to the next border, behind which the module asks again. */
	if (sector < HOT) {
		if (sectors > HOT - sector)
			sectors = HOT - sector;
		return vql_table_lookup(req, sector, sectors);
	}
	if (sectors > HOT + HOT_SECTORS - sector)
		sectors = HOT + HOT_SECTORS - sector;
	return vql_table_lookup(req, COPY + sector - HOT, sectors);
}

/* Its name is what "vqlane disk list" shows. */
SEC(".struct_ops.link")
struct vqlane_remap_ops protect_image = {.remap = (void *)protect};

char LICENSE[] SEC("license") = "GPL";
