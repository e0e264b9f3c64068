// SPDX-License-Identifier: GPL-2.0-only
/*
 * A request of the kernel lane: remapped by a BPF program, held against what the disk was given, and
 * made into NVMe commands. All or nothing: a request of which a part cannot be said, or has no free
 * command, stays at the head of its ring.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/slab.h>
#include <linux/sort.h>
#include <vqlane/remap.h>
#include "disk/disk.h"
#include "lane/trace.h"

/* ---- what a disk may reach ---- */

static int config_kqs(struct vql_lane_config *config, struct vql_ctrl *ctrl)
{
	struct vql_kq *kq;
	u32 i, kind;

	for (i = 0; i < config->nkqs; i += VQL_KQ_KINDS)
		if (vql_kq_ctrl(config->kqs[i]) == ctrl)
			return i;
	if (i == VQL_MAX_CONTROLLERS * VQL_KQ_KINDS)
		return -E2BIG;
	for (kind = 0; kind < VQL_KQ_KINDS; kind++) {
		kq = vql_kq_get(ctrl, kind);
		/* A controller with few queue pairs, or interrupts, has one for both. */
		if (kind == VQL_KQ_SLOW && IS_ERR(kq) && kq != ERR_PTR(-EAGAIN) &&
		    kq != ERR_PTR(-ENODEV) && kq != ERR_PTR(-EINTR))
			kq = vql_kq_get(ctrl, VQL_KQ_FAST);
		if (IS_ERR(kq))
			return PTR_ERR(kq); /* and the configuration is given up */
		config->kqs[config->nkqs++] = kq;
	}
	return i;
}

static bool range_is_valid(const struct vql_lane_range *range, const struct vql_ns_info *ns)
{
	u64 block_sectors = ns->block_bytes >> VQL_SECTOR_SHIFT;
	u64 sectors = ns->blocks * block_sectors;

	return range->sectors && !((range->sector | range->sectors) & (block_sectors - 1)) &&
	       range->sector < sectors && range->sectors <= sectors - range->sector;
}

/* Parts of a target that touch are one: an answer may be in both. */
static void config_push(struct vql_lane_config *config, const struct vql_lane_target *t)
{
	struct vql_lane_target *last = &config->targets[config->ntargets] - 1;

	if (config->ntargets && last->target == t->target && last->nsid == t->nsid &&
	    last->view == t->view && last->read_only == t->read_only &&
	    last->sector + last->sectors == t->sector)
		last->sectors += t->sectors;
	else
		config->targets[config->ntargets++] = *t;
}

static int config_add(struct vql_lane_config *config, const struct vql_lane_range *range)
{
	struct vql_lane_target *last = &config->targets[config->ntargets] - 1;
	struct vql_ns_info ns = {.nsid = range->nsid};
	struct vql_ctrl *ctrl;
	int err;

	if (range->flags & ~VQL_RANGE_READ_ONLY || range->target >= VQL_MAX_TARGETS)
		return -EINVAL;
	if (config->ntargets &&
	    (range->target < last->target ||
	     (range->target == last->target && range->sector < last->sector + last->sectors)))
		return -EINVAL;
	if (range->ctrl_fd == -1) {
		if (range->nsid || !range->sectors)
			return -EINVAL;
		config_push(config, &(struct vql_lane_target){
					    .target = range->target,
					    .view = VQL_LANE_DAEMON,
					    .block_shift = VQL_SECTOR_SHIFT,
					    .sector = range->sector,
					    .sectors = range->sectors,
				    });
		return 0;
	}
	ctrl = vql_ctrl_of_fd(range->ctrl_fd);
	if (IS_ERR(ctrl))
		return PTR_ERR(ctrl);
	err = vql_ctrl_ns(ctrl, &ns);
	if (!err && !range_is_valid(range, &ns))
		err = -EINVAL;
	if (!err)
		err = config_kqs(config, ctrl);
	vql_ctrl_put(ctrl);
	if (err < 0)
		return err;
	config_push(config, &(struct vql_lane_target){
				    .target = range->target,
				    .nsid = range->nsid,
				    .view = err,
				    .read_only = range->flags & VQL_RANGE_READ_ONLY,
				    .block_shift = ns.block_bytes == 4096 ? 12 : 9,
				    .sector = range->sector,
				    .sectors = range->sectors,
				    .boundary = (u64)ns.boundary_blocks * ns.block_bytes,
			    });
	return 0;
}

struct vql_lane_config *vql_lane_config_create(const struct vql_disk_lane *lane)
{
	struct vql_lane_config *config;
	struct vql_lane_range *ranges;
	int err = -ENOMEM;
	u32 i;

	ranges = vmemdup_user(u64_to_user_ptr(lane->ranges),
			      array_size(lane->nranges, sizeof(*ranges)));
	if (IS_ERR(ranges))
		return ERR_CAST(ranges);
	config = kvzalloc(struct_size(config, targets, lane->nranges), GFP_KERNEL);
	if (!config)
		goto out;
	config->kqs = kcalloc(VQL_MAX_CONTROLLERS * VQL_KQ_KINDS, sizeof(*config->kqs), GFP_KERNEL);
	config->held =
		kcalloc(VQL_MAX_CONTROLLERS * VQL_KQ_KINDS, sizeof(*config->held), GFP_KERNEL);
	if (!config->kqs || !config->held)
		goto out;
	config->slot = lane->slot;
	config->busy_iops = lane->busy_iops;
	memcpy(config->id, lane->id, sizeof(config->id));
	err = 0;
	for (i = 0; i < lane->nranges && !err; i++)
		err = config_add(config, &ranges[i]);
out:
	kvfree(ranges);
	if (err) {
		vql_lane_config_free(config);
		return ERR_PTR(err);
	}
	return config;
}

void vql_lane_config_free(struct vql_lane_config *config)
{
	u32 i;

	if (!config)
		return;
	for (i = 0; i < config->nkqs; i++)
		vql_kq_put(config->kqs[i]);
	kfree(config->kqs);
	kfree(config->held);
	kvfree(config);
}

/* The one that has all of [sector, sector + sectors) of @target, or NULL. */
static const struct vql_lane_target *target_find(const struct vql_lane_config *config, u32 target,
						 u64 sector, u64 sectors)
{
	u32 lo = 0, hi = config->ntargets;

	while (lo < hi) {
		u32 mid = lo + (hi - lo) / 2;
		const struct vql_lane_target *t = &config->targets[mid];

		if (target < t->target || (target == t->target && sector < t->sector))
			hi = mid;
		else if (target > t->target || sector - t->sector >= t->sectors)
			lo = mid + 1;
		else
			return sectors <= t->sectors - (sector - t->sector) ? t : NULL;
	}
	return NULL;
}

/* ---- where data is ---- */

/* A place in a request's segments. */
struct place {
	const struct vql_seg *seg;
	u64 skip;
};

static void place_advance(struct place *at, u64 bytes)
{
	at->skip += bytes;
	while (at->skip && at->skip >= at->seg->bytes) { /* not beyond the last: skip is 0 there */
		at->skip -= at->seg->bytes;
		at->seg++;
	}
}

/* DMA address of kernel address @virt, and in @bytes how far it goes on so, within a page. */
static bool dma_of(struct vql_lane_dma *dma, const u8 *virt, u64 *bytes, u64 *addr)
{
	u64 at = (u64)(uintptr_t)virt, here;
	const struct vql_region *r;
	u32 kind;

	for (kind = 0; kind < 2; kind++) {
		r = vql_mem_find(&dma->mem[kind], at);
		if (!r)
			continue;
		here = min(r->bytes - (at - r->guest), VQL_NVME_PAGE_BYTES - offset_in_page(at));
		*bytes = min(*bytes, here);
		*addr = (u64)(uintptr_t)r->host + (at - r->guest);
		return true;
	}
	return false; /* it was not the guest's: cannot be */
}

/* A list under construction, of either kind. */
struct list {
	bool is_sgl;
	struct vql_nvme_prp prp;
	struct vql_nvme_sgls sgls;
};

static bool list_add_run(struct list *list, u64 dma, u64 bytes)
{
	return list->is_sgl ? vql_nvme_sgl_add(&list->sgls, dma, (u32)bytes)
			    : vql_nvme_prp_add(&list->prp, dma, bytes);
}

/* Say @bytes of data from @at on, as far as it goes, in the list that is in @page. Returns how far. */
static u64 build(struct vql_lane_dma *dma, struct place at, u64 bytes, bool is_sgl, void *page,
		 u64 page_dma, struct vql_nvme_sqe *sqe)
{
	struct list list = {.is_sgl = is_sgl};
	u64 done = 0;

	vql_nvme_prp_begin(&list.prp, page);
	vql_nvme_sgl_begin(&list.sgls, page);
	while (done < bytes) {
		u64 here = min(at.seg->bytes - at.skip, bytes - done), addr;

		if (!dma_of(dma, (u8 *)at.seg->base + at.skip, &here, &addr) ||
		    !list_add_run(&list, addr, here))
			break;
		done += here;
		if (done < bytes)
			place_advance(&at, here);
	}
	sqe->flags = 0;
	if (is_sgl)
		vql_nvme_sgl_end(&list.sgls, page_dma, sqe);
	else
		vql_nvme_prp_end(&list.prp, page_dma, sqe);
	return done;
}

/* As much of @limit bytes, in whole blocks, as one command can say; 0: nothing. */
static u64 build_data(struct vql_lane_dma *dma, const struct place *at, u64 limit, u64 partial,
		      struct vql_lane_part *part)
{
	void *page = vql_kq_page(part->kq, part->tag);
	u64 page_dma = vql_kq_page_dma(part->kq, part->tag);
	bool sgl = false;
	u64 done;

	done = build(dma, *at, limit, false, page, page_dma, part->sqe);
	if (done == limit)
		return done;
	if (vql_kq_limits(part->kq)->sgl) {
		sgl = true;
		done = build(dma, *at, limit, true, page, page_dma, part->sqe);
	}
	if (done & partial) /* a list has no entry too many */
		build(dma, *at, done & ~partial, sgl, page, page_dma, part->sqe);
	return done & ~partial;
}

/* ---- commands ---- */

static struct vql_lane_part *new_part(struct vql_lane *lane, u16 head,
				      const struct vql_lane_target *t, enum vql_nvme_opcode opcode,
				      int *err)
{
	struct vql_lane_scratch *s = lane->scratch;
	struct vql_lane_part *part = &s->parts[s->nparts];
	const bool slow = opcode == VQL_NVME_DSM || opcode == VQL_NVME_WRITE_ZEROES;
	const u32 at = t->view + (slow ? VQL_KQ_SLOW : VQL_KQ_FAST);
	int tag;

	if (s->nparts == VQL_LANE_PARTS) {
		*err = VQL_LANE_SHAPE;
		return NULL;
	}
	tag = vql_kq_reserve(lane, at, head);
	if (tag < 0) {
		*err = tag; /* VQL_LANE_WAIT or VQL_LANE_GONE */
		return NULL;
	}
	part->kq = lane->config->kqs[at];
	part->at = at;
	part->tag = (u16)tag;
	part->sqe = vql_kq_sqe(part->kq, part->tag);
	vql_nvme_command(part->sqe, opcode, 0, t->nsid);
	s->nparts++;
	return part;
}

static void cancel_parts(struct vql_lane_scratch *s)
{
	while (s->nparts) {
		s->nparts--;
		vql_kq_cancel(s->parts[s->nparts].kq, s->parts[s->nparts].tag);
	}
}

static u32 fua(const struct vql_lane *lane, const struct vql_lane_part *part)
{
	return lane->durable && vql_kq_limits(part->kq)->volatile_cache ? VQL_NVME_FUA : 0;
}

/* How much of @left bytes at @offset one command does. */
static u64 command_limit(const struct vql_lane *lane, const struct vql_lane_target *t, u32 op,
			 u64 offset, u64 left)
{
	return vql_nvme_most(&vql_kq_limits(lane->config->kqs[t->view])->most, op, t->block_shift,
			     t->boundary, offset, left);
}

/* Read or write @bytes at @offset of the namespace; @at moves on. */
static int plan_data(struct vql_lane *lane, u16 head, struct vql_lane_io *io,
		     const struct vql_lane_target *t, u64 offset, u64 bytes, struct place *at)
{
	bool read = io->io.op == VQL_OP_READ;
	u64 partial = (1ull << t->block_shift) - 1;
	int err = 0;

	while (bytes) {
		struct vql_lane_part *part =
			new_part(lane, head, t, read ? VQL_NVME_READ : VQL_NVME_WRITE, &err);
		u64 done, limit;

		if (!part)
			return err;
		limit = command_limit(lane, t, io->io.op, offset, bytes);
		done = build_data(&lane->dma[t->view], at, limit, partial, part);
		if (!done)
			return VQL_LANE_SHAPE; /* it needs a copy: the daemon's */
		vql_nvme_blocks(part->sqe, offset >> t->block_shift, (u32)(done >> t->block_shift),
				read ? 0 : fua(lane, part));
		offset += done;
		bytes -= done;
		place_advance(at, done);
	}
	return 0;
}

static int plan_zeroes(struct vql_lane *lane, u16 head, struct vql_lane_io *io,
		       const struct vql_lane_target *t, u64 offset, u64 bytes)
{
	u32 deac = io->io.flags & VQL_IO_UNMAP ? VQL_NVME_DEAC : 0;
	int err = 0;

	if (!vql_kq_limits(lane->config->kqs[t->view])->write_zeroes)
		return VQL_LANE_SHAPE; /* writes of zeroes: the daemon has some */
	while (bytes) {
		struct vql_lane_part *part = new_part(lane, head, t, VQL_NVME_WRITE_ZEROES, &err);
		u64 done;

		if (!part)
			return err;
		done = command_limit(lane, t, io->io.op, offset, bytes);
		vql_nvme_blocks(part->sqe, offset >> t->block_shift, (u32)(done >> t->block_shift),
				deac | fua(lane, part));
		offset += done;
		bytes -= done;
	}
	return 0;
}

static int plan_discard(struct vql_lane *lane, u16 head, struct vql_lane_io *io,
			const struct vql_lane_target *t, u64 offset, u64 bytes)
{
	int err = 0;

	if (!vql_kq_limits(lane->config->kqs[t->view])->discard) {
		io->io.status = VQL_STATUS_UNSUPP;
		return 1;
	}
	while (bytes) {
		struct vql_lane_part *part = new_part(lane, head, t, VQL_NVME_DSM, &err);
		u64 done = min_t(u64, command_limit(lane, t, io->io.op, offset, bytes),
				 VQL_LANE_DISCARD_BYTES);

		if (!part)
			return err;
		if (fua(lane, part))
			return VQL_LANE_SHAPE; /* a flush would have to follow */
		vql_nvme_deallocate(part->sqe, vql_kq_page(part->kq, part->tag),
				    vql_kq_page_dma(part->kq, part->tag), offset >> t->block_shift,
				    (u32)(done >> t->block_shift));
		offset += done;
		bytes -= done;
	}
	return 0;
}

/* Each namespace that has something to flush, once. */
static int plan_flush(struct vql_lane *lane, u16 head, struct vql_lane_io *io)
{
	const struct vql_lane_config *config = lane->config;
	int err = 0;
	u32 i, j;

	for (i = 0; i < config->ntargets; i++) {
		const struct vql_lane_target *t = &config->targets[i];

		if (t->view == VQL_LANE_DAEMON)
			return VQL_LANE_VERDICT;
		if (!vql_kq_limits(config->kqs[t->view])->volatile_cache)
			continue;
		for (j = 0; j < i; j++)
			if (config->targets[j].view == t->view &&
			    config->targets[j].nsid == t->nsid)
				break;
		if (j == i && !new_part(lane, head, t, VQL_NVME_FLUSH, &err))
			return err;
	}
	return lane->scratch->nparts ? 0 : 1;
}

/* ---- remapping ---- */

/* A program's answer that the disk has no right to. */
static int bad_answer(struct vql_lane *lane, struct vqlane_remap_req *req)
{
	struct vql_disk *disk = lane->disk;

	trace_vqlane_error(req->slot, (u16)lane->index, -ERANGE,
			   "remap program's answer is not the disk's to reach");
	WRITE_ONCE(lane->refused, lane->refused + 1);
	if (!test_and_set_bit(0, &disk->warned))
		dev_warn(&disk->vdev.dev,
			 "remap program refused: it sends operation %u, sector %llu, to target %u, "
			 "sector %llu, %llu sectors\n",
			 req->op, req->sector, req->target, req->target_sector,
			 req->target_sectors);
	req->status = VQL_STATUS_IOERR;
	return 1;
}

/*
 * Has the disk a right to the program's answer? 0: to *@t; 1: no, or it is a refusal: @req->status is final; or
 * VQL_LANE_VERDICT. Under lane->lock.
 */
static int judge(struct vql_lane *lane, const struct vql_lane_config *config,
		 struct vqlane_remap_req *req, const struct vql_lane_target **t)
{
	u64 partial;

	switch (req->verdict) {
	case VQL_SERVE: break;
	case VQL_USER: return VQL_LANE_VERDICT;
	case VQL_REFUSE:
		if (req->status != VQL_STATUS_UNSUPP)
			req->status = VQL_STATUS_IOERR;
		return 1;
	default: return bad_answer(lane, req);
	}
	if (!req->target_sectors || req->target_sectors > req->sectors)
		return bad_answer(lane, req);
	*t = target_find(config, req->target, req->target_sector, req->target_sectors);
	if (!*t || ((*t)->read_only && req->op != VQL_OP_READ))
		return bad_answer(lane, req);
	partial = (1ull << ((*t)->block_shift - VQL_SECTOR_SHIFT)) - 1;
	if ((req->target_sector | req->target_sectors) & partial)
		return bad_answer(lane, req);
	return 0;
}

/*
 * Where the next sectors rest: *@t, and @req's answer for 1…@req->sectors of them. 0; 1: the request's
 * status is final; or VQL_LANE_VERDICT.
 */
static int remap(struct vql_lane *lane, struct vql_lane_io *io, struct vqlane_remap_req *req,
		 const struct vql_lane_target **t)
{
	int err;

	if (!vql_remap_ask(lane->disk, req))
		return VQL_LANE_VERDICT;
	if (!io->trace.remapped) {
		io->trace.remapped = ktime_get_ns();
		io->trace.target = req->target;
	}
	trace_vqlane_remap(&io->trace, req->verdict, req->target_sector, req->target_sectors);
	err = judge(lane, lane->config, req, t);
	if (err == 1)
		io->io.status = (u8)req->status;
	return !err && (*t)->view == VQL_LANE_DAEMON ? VQL_LANE_VERDICT : err;
}

/* The program runs as it does in the lane: under its lock, with interrupts off. */
int vql_lane_ask(struct vql_lane *lane, struct vqlane_remap_req *req)
{
	const struct vql_lane_config *config = lane->disk->lane_config;
	const struct vql_lane_target *t;
	int err = VQL_LANE_VERDICT;

	lockdep_assert_held(&lane->disk->lock);
	if (!config)
		return -EINVAL;
	req->slot = config->slot;
	spin_lock_irq(&lane->lock);
	if (vql_remap_ask(lane->disk, req))
		err = judge(lane, config, req, &t);
	spin_unlock_irq(&lane->lock);
	if (err)
		req->verdict = err == 1 ? VQL_REFUSE : VQL_USER;
	return 0;
}

static int plan(struct vql_lane *lane, u16 head, struct vql_lane_io *io)
{
	struct place at = {.seg = io->io.seg};
	u64 sector = io->io.sector, left = io->io.bytes >> VQL_SECTOR_SHIFT;
	int err = 0;

	if (io->io.op == VQL_OP_FLUSH)
		return plan_flush(lane, head, io);
	while (left && !err) {
		struct vqlane_remap_req req = {
			.slot = lane->config->slot,
			.op = io->io.op,
			.sector = sector,
			.sectors = left,
		};
		const struct vql_lane_target *t;
		u64 offset, bytes;

		err = remap(lane, io, &req, &t);
		if (err)
			break;
		offset = req.target_sector << VQL_SECTOR_SHIFT;
		bytes = req.target_sectors << VQL_SECTOR_SHIFT;
		switch (io->io.op) {
		case VQL_OP_DISCARD: err = plan_discard(lane, head, io, t, offset, bytes); break;
		case VQL_OP_WRITE_ZEROES:
			err = plan_zeroes(lane, head, io, t, offset, bytes);
			break;
		default: err = plan_data(lane, head, io, t, offset, bytes, &at); break;
		}
		sector += req.target_sectors;
		left -= req.target_sectors;
	}
	return err;
}

int vql_lane_submit(struct vql_lane *lane, u16 head, struct vql_lane_io *io)
{
	struct vql_lane_scratch *s = lane->scratch;
	int err;
	u32 i;

	s->nparts = 0;
	err = plan(lane, head, io);
	if (err) {
		cancel_parts(s);
		return err;
	}
	vql_kq_leave_line(lane); /* its place was for this request */
	io->parts = (u16)s->nparts;
	io->lost = false;
	io->trace.submitted = s->nparts ? ktime_get_ns() : 0;
	for (i = 0; i < s->nparts; i++) {
		if (vql_kq_push(s->parts[i].kq, s->parts[i].tag)) {
			lane->dma[s->parts[i].at].ring = true;
			trace_vqlane_submit(&io->trace, vql_kq_qid(s->parts[i].kq),
					    s->parts[i].tag);
		} else {
			io->parts--;
			io->lost = true;
		}
	}
	return 0;
}

void vql_lane_ring_doorbells(struct vql_lane *lane)
{
	u32 i;

	for (i = 0; i < lane->config->nkqs; i++) {
		if (!lane->dma[i].ring)
			continue;
		lane->dma[i].ring = false;
		vql_kq_ring(lane->config->kqs[i]);
	}
}
