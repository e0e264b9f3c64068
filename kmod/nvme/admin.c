// SPDX-License-Identifier: GPL-2.0-only
/*
 * The admin queue: one command at a time, under ctrl->lock, plus one asynchronous event request
 * that stays with the controller until it has something to tell.
 *
 * Doorbells of all queues share a page, so a daemon that has one mapped can make the controller
 * fetch the admin queue's entries again. Hence they are wiped when they have done their duty: what
 * remains is opcode 0, Delete I/O Submission Queue, of queue 0, which does not exist.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/interrupt.h>
#include <linux/module.h>

#include "nvme/ctrl.h"

enum {
	VQL_EVENT_CID = 0x8000, /* of the asynchronous event request; others are below */
};

static unsigned int admin_timeout_s = 60;
module_param(admin_timeout_s, uint, 0644);
MODULE_PARM_DESC(admin_timeout_s,
		 "seconds an NVMe controller may take for an admin command before it is reset");

int vql_admin_alloc(struct vql_ctrl *ctrl)
{
	struct vql_admin *admin = &ctrl->admin;
	struct device *dev = &ctrl->pdev->dev;
	int err;

	err = vql_coherent_alloc(dev, &admin->sq, VQL_ADMIN_DEPTH * sizeof(struct nvme_command));
	if (!err)
		err = vql_coherent_alloc(dev, &admin->cq,
					 VQL_ADMIN_DEPTH * sizeof(struct nvme_completion));
	if (!err)
		err = vql_coherent_alloc(dev, &admin->data, VQL_ADMIN_DATA_BYTES);
	if (err)
		vql_admin_free(ctrl);
	return err;
}

void vql_admin_free(struct vql_ctrl *ctrl)
{
	struct device *dev = &ctrl->pdev->dev;

	vql_coherent_free(dev, &ctrl->admin.data);
	vql_coherent_free(dev, &ctrl->admin.cq);
	vql_coherent_free(dev, &ctrl->admin.sq);
}

void vql_admin_begin(struct vql_ctrl *ctrl)
{
	struct vql_admin *admin = &ctrl->admin;

	spin_lock_irq(&admin->lock);
	memset(admin->sq.cpu, 0, admin->sq.bytes);
	memset(admin->cq.cpu, 0, admin->cq.bytes);
	admin->tail = 0;
	admin->head = 0;
	admin->phase = 1;
	admin->cid = 0;
	admin->has_event = false;
	spin_unlock_irq(&admin->lock);

	writel((VQL_ADMIN_DEPTH - 1) << 16 | (VQL_ADMIN_DEPTH - 1), ctrl->bar + NVME_REG_AQA);
	lo_hi_writeq(admin->sq.dma, ctrl->bar + NVME_REG_ASQ);
	lo_hi_writeq(admin->cq.dma, ctrl->bar + NVME_REG_ACQ);
}

/* Under admin->lock. There is always room: at most two commands are with the controller. */
static void admin_submit(struct vql_ctrl *ctrl, const struct nvme_command *cmd)
{
	struct vql_admin *admin = &ctrl->admin;
	struct nvme_command *sq = admin->sq.cpu;

	sq[admin->tail] = *cmd;
	admin->tail = (admin->tail + 1) % VQL_ADMIN_DEPTH;
	/* writel() orders the entry before the doorbell. */
	writel(admin->tail, ctrl->bar + NVME_REG_DBS);
}

/* Under admin->lock. */
static void admin_reap(struct vql_ctrl *ctrl)
{
	struct vql_admin *admin = &ctrl->admin;
	struct nvme_completion *cq = admin->cq.cpu;
	unsigned int n;

	for (n = 0; n < VQL_ADMIN_DEPTH; n++) {
		struct nvme_completion *cqe = &cq[admin->head];
		u16 status = le16_to_cpu(READ_ONCE(cqe->status));

		if ((status & 1) != admin->phase)
			break;
		dma_rmb(); /* the phase before the rest of the entry */
		if (cqe->command_id == VQL_EVENT_CID) {
			/* An error here means no more events, not a reason to do without it. */
			if (!(status >> 1)) {
				admin->event = le32_to_cpu(cqe->result.u32);
				admin->has_event = true;
				queue_work(system_long_wq, &ctrl->event_work);
			}
		} else if (admin->cid && cqe->command_id == admin->cid) {
			admin->result = le32_to_cpu(cqe->result.u32);
			admin->status = status >> 1;
			admin->done = true;
			wake_up(&admin->wait);
		}
		if (++admin->head == VQL_ADMIN_DEPTH) {
			admin->head = 0;
			admin->phase ^= 1;
		}
	}
	if (n)
		writel(admin->head, ctrl->bar + NVME_REG_DBS + ctrl->stride);
}

irqreturn_t vql_admin_irq(int irq, void *data)
{
	struct vql_ctrl *ctrl = data;
	unsigned long flags;

	spin_lock_irqsave(&ctrl->admin.lock, flags);
	admin_reap(ctrl);
	spin_unlock_irqrestore(&ctrl->admin.lock, flags);
	return IRQ_HANDLED;
}

static bool admin_done(struct vql_ctrl *ctrl)
{
	return READ_ONCE(ctrl->admin.done) || READ_ONCE(ctrl->offline);
}

/*
 * A VMM waits for a queue to be deleted when it takes memory away, and with it all who want to see its memory map: so
 * that has no more than a part of the two minutes after which the kernel calls them hung.
 */
#define DELETE_S 15u

/*
 * Looked at each second: a VMM may come while another's command is under way, and then waits for that as well. A
 * controller that starts has no queue pair that anybody could wait for.
 */
static unsigned int admin_seconds(struct vql_ctrl *ctrl, u8 opcode)
{
	unsigned int seconds = clamp(READ_ONCE(admin_timeout_s), 1u, 3600u);

	return opcode == nvme_admin_delete_sq || opcode == nvme_admin_delete_cq ||
			       (atomic_read(&ctrl->hurried) && !vql_ctrl_usable(ctrl))
		       ? min(seconds, DELETE_S)
		       : seconds;
}

/* Wait for the command under way, and look each second whether that still makes sense. */
static int admin_wait(struct vql_ctrl *ctrl, u8 opcode)
{
	unsigned int seconds = 0;
	struct vql_admin *admin = &ctrl->admin;
	bool done = false;
	int err = 0;
	u32 csts;

	while (!wait_event_timeout(admin->wait, admin_done(ctrl), HZ)) {
		/* The interrupt may have been lost: that is no reason to reset. */
		spin_lock_irq(&admin->lock);
		admin_reap(ctrl);
		done = admin->done;
		spin_unlock_irq(&admin->lock);
		if (done || vql_ctrl_absent(ctrl))
			break;
		csts = readl(ctrl->bar + NVME_REG_CSTS);
		if (csts & NVME_CSTS_CFS || !(csts & NVME_CSTS_RDY))
			err = -EIO;
		else if (++seconds >= admin_seconds(ctrl, opcode))
			err = -ETIMEDOUT;
		if (err)
			break;
	}
	spin_lock_irq(&admin->lock);
	if (admin->done)
		err = 0;
	else if (!err)
		err = -ENODEV;
	admin->cid = 0; /* comes it late, nobody wants it */
	spin_unlock_irq(&admin->lock);
	return err;
}

int vql_admin_run(struct vql_ctrl *ctrl, struct nvme_command *cmd, u32 *result)
{
	struct vql_admin *admin = &ctrl->admin;
	int err;

	lockdep_assert_held(&ctrl->lock);
	admin->last_cid = admin->last_cid % (VQL_EVENT_CID - 1) + 1;
	cmd->common.command_id = admin->last_cid;

	spin_lock_irq(&admin->lock);
	admin->cid = admin->last_cid;
	admin->done = false;
	admin_submit(ctrl, cmd);
	spin_unlock_irq(&admin->lock);

	err = admin_wait(ctrl, cmd->common.opcode);
	if (!err) {
		/* Entries are fetched in order, so no entry in the queue is still to be fetched. */
		memset(admin->sq.cpu, 0, admin->sq.bytes);
		if (result)
			*result = admin->result;
		return admin->status & 0x7ff; /* without More and Do Not Retry */
	}
	vql_ctrl_warn(ctrl, "admin command 0x%02x: %s\n", cmd->common.opcode,
		      err == -ENODEV ? "the controller is not there"
		      : err == -EIO  ? "the controller has failed (CSTS)"
				     : "no answer in time (admin_timeout_s)");
	if (!vql_ctrl_usable(ctrl))
		vql_ctrl_reset(ctrl);
	return err;
}

int vql_admin_identify(struct vql_ctrl *ctrl, u8 cns, u32 nsid)
{
	struct nvme_command cmd = {
		.identify =
			{
				.opcode = nvme_admin_identify,
				.nsid = cpu_to_le32(nsid),
				.dptr.prp1 = cpu_to_le64(ctrl->admin.data.dma),
				.cns = cns,
			},
	};

	/* A controller that transfers less than the whole tells nothing of the last one's data. */
	memset(ctrl->admin.data.cpu, 0, VQL_ADMIN_DATA_BYTES);
	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_log(struct vql_ctrl *ctrl, u8 page, u32 nsid, u32 bytes, bool keep_event)
{
	struct nvme_command cmd = {
		.get_log_page =
			{
				.opcode = nvme_admin_get_log_page,
				.nsid = cpu_to_le32(nsid),
				.dptr.prp1 = cpu_to_le64(ctrl->admin.data.dma),
				.lid = page,
				.lsp = keep_event ? BIT(7) : 0, /* Retain Asynchronous Event */
				.numdl = cpu_to_le16((u16)(bytes / 4 - 1)),
			},
	};

	memset(ctrl->admin.data.cpu, 0, VQL_ADMIN_DATA_BYTES);
	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_set_feature(struct vql_ctrl *ctrl, u8 feature, u32 value, u32 *result)
{
	struct nvme_command cmd = {
		.features =
			{
				.opcode = nvme_admin_set_features,
				.fid = cpu_to_le32(feature),
				.dword11 = cpu_to_le32(value),
			},
	};

	return vql_admin_run(ctrl, &cmd, result);
}

int vql_admin_set_behavior(struct vql_ctrl *ctrl)
{
	struct nvme_feat_host_behavior *host = ctrl->admin.data.cpu;
	struct nvme_command cmd = {
		.features =
			{
				.opcode = nvme_admin_set_features,
				.fid = cpu_to_le32(NVME_FEAT_HOST_BEHAVIOR),
				.dptr.prp1 = cpu_to_le64(ctrl->admin.data.dma),
			},
	};

	memset(host, 0, sizeof(*host));
	host->acre = NVME_ENABLE_ACRE;
	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_create_cq(struct vql_ctrl *ctrl, u16 qid, dma_addr_t dma, u32 depth, int vector)
{
	struct nvme_command cmd = {
		.create_cq =
			{
				.opcode = nvme_admin_create_cq,
				.prp1 = cpu_to_le64(dma),
				.cqid = cpu_to_le16(qid),
				.qsize = cpu_to_le16((u16)(depth - 1)),
				.cq_flags = cpu_to_le16(NVME_QUEUE_PHYS_CONTIG |
							(vector > 0 ? NVME_CQ_IRQ_ENABLED : 0)),
				.irq_vector = cpu_to_le16((u16)max(vector, 0)),
			},
	};

	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_create_sq(struct vql_ctrl *ctrl, u16 qid, dma_addr_t dma, u32 depth)
{
	struct nvme_command cmd = {
		.create_sq =
			{
				.opcode = nvme_admin_create_sq,
				.prp1 = cpu_to_le64(dma),
				.sqid = cpu_to_le16(qid),
				.qsize = cpu_to_le16((u16)(depth - 1)),
				.sq_flags =
					cpu_to_le16(NVME_QUEUE_PHYS_CONTIG | NVME_SQ_PRIO_MEDIUM),
				.cqid = cpu_to_le16(qid),
			},
	};

	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_delete(struct vql_ctrl *ctrl, u8 opcode, u16 qid)
{
	struct nvme_command cmd = {
		.delete_queue =
			{
				.opcode = opcode,
				.qid = cpu_to_le16(qid),
			},
	};

	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_abort(struct vql_ctrl *ctrl, u16 qid, u16 cid)
{
	struct nvme_command cmd = {
		.abort =
			{
				.opcode = nvme_admin_abort_cmd,
				.sqid = cpu_to_le16(qid),
				.cid = cid,
			},
	};

	return vql_admin_run(ctrl, &cmd, NULL);
}

int vql_admin_set_shadow(struct vql_ctrl *ctrl)
{
	struct nvme_command cmd = {
		.dbbuf =
			{
				.opcode = nvme_admin_dbbuf,
				.prp1 = cpu_to_le64(ctrl->shadow.dma),
				.prp2 = cpu_to_le64(ctrl->event_index.dma),
			},
	};

	return vql_admin_run(ctrl, &cmd, NULL);
}

/* One request is enough: the controller keeps further events until the next. */
void vql_admin_await_event(struct vql_ctrl *ctrl)
{
	struct nvme_command cmd = {
		.common =
			{
				.opcode = nvme_admin_async_event,
				.command_id = VQL_EVENT_CID,
			},
	};

	lockdep_assert_held(&ctrl->lock);
	spin_lock_irq(&ctrl->admin.lock);
	admin_submit(ctrl, &cmd);
	spin_unlock_irq(&ctrl->admin.lock);
}

bool vql_admin_take_event(struct vql_ctrl *ctrl, u32 *event)
{
	struct vql_admin *admin = &ctrl->admin;
	bool has;

	spin_lock_irq(&admin->lock);
	has = admin->has_event;
	admin->has_event = false;
	*event = admin->event;
	spin_unlock_irq(&admin->lock);
	return has;
}
