// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a controller tells of itself (Identify, NVMe 2.0 §5.17). It is brought up with whatever of this it
 * has: only Identify Controller must succeed. What is refused, or fails, of the rest leaves a limit or a count
 * unknown, and is told once; a controller that does not answer at all has been reset by then.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "nvme/ctrl.h"

enum {
	VQL_SHUTDOWN_MS = 10000, /* for a normal shutdown, at least */
	VQL_NS_LISTS = 64,       /* of 1024 active namespaces each */
	VQL_NS_ASKED = 256,      /* namespaces asked for one by one, where there is no list */
};

/* A field of text from Identify, as it is: padded with blanks, not terminated. */
void vql_ctrl_read_identity(struct vql_ctrl *ctrl, const struct nvme_id_ctrl *id,
			    struct vql_ctrl_info *info)
{
	BUILD_BUG_ON(sizeof(id->sn) != VQL_SERIAL_BYTES || sizeof(id->mn) != VQL_MODEL_BYTES);
	BUILD_BUG_ON(sizeof(*id) != VQL_ADMIN_DATA_BYTES);
	memcpy(info->serial, id->sn, VQL_SERIAL_BYTES);
	memcpy(info->model, id->mn, VQL_MODEL_BYTES);
	ctrl->nn = le32_to_cpu(id->nn);
	info->sgls = le32_to_cpu(id->sgls);
	info->oncs = le16_to_cpu(id->oncs);
	if (ctrl->quirks & VQL_QUIRK_NO_WRITE_ZEROES)
		info->oncs &= ~(u32)NVME_CTRL_ONCS_WRITE_ZEROES;
	if (ctrl->quirks & VQL_QUIRK_NO_DISCARD)
		info->oncs &= ~(u32)NVME_CTRL_ONCS_DSM;
	info->volatile_cache = id->vwc & NVME_CTRL_VWC_PRESENT;
	info->crdt[0] = le16_to_cpu(id->crdt1);
	info->crdt[1] = le16_to_cpu(id->crdt2);
	info->crdt[2] = le16_to_cpu(id->crdt3);
	info->max_transfer = VQL_MAX_TRANSFER;
	if (id->mdts && id->mdts < ilog2(VQL_MAX_TRANSFER / 4096))
		info->max_transfer = 4096u << id->mdts;
	ctrl->shutdown_ms = max_t(u32, le32_to_cpu(id->rtd3e) / 1000, VQL_SHUTDOWN_MS);
}

int vql_ctrl_read_limits(struct vql_ctrl *ctrl, struct vql_ctrl_info *info)
{
	const struct nvme_id_ctrl_nvm *id = ctrl->admin.data.cpu;
	int err;

	BUILD_BUG_ON(sizeof(*id) != VQL_ADMIN_DATA_BYTES);
	/* Older ones have never heard of it, and each refusal would be one more entry in their error log. */
	if (readl(ctrl->bar + NVME_REG_VS) < NVME_VS(1, 4, 0) || ctrl->quirks & VQL_QUIRK_FEW_CNS)
		return 0;
	/* Command Set Identifier 0: the NVM command set's. */
	err = vql_admin_identify(ctrl, NVME_ID_CNS_CS_CTRL, 0);
	if (err < 0)
		return err;
	if (err) {
		vql_ctrl_note(ctrl,
			      "tells no limits of discards and Write Zeroes (NVMe status 0x%x)\n",
			      err);
		return 0;
	}
	info->dmrl = id->dmrl;
	info->dmrsl = le32_to_cpu(id->dmrsl);
	info->dmsl = le64_to_cpu(id->dmsl);
	/* In pages of CAP.MPSMIN, which is 4096 bytes. One that does not fit limits nothing. */
	if (id->wzsl && id->wzsl < 32 - ilog2(4096))
		info->wzsl = 4096u << id->wzsl;
	return 0;
}

/* From the list of active namespaces. */
static int count_listed(struct vql_ctrl *ctrl, u32 *count)
{
	const __le32 *list = ctrl->admin.data.cpu;
	u32 nsid = 0;
	int i, k, err;

	*count = 0;
	for (i = 0; i < VQL_NS_LISTS; i++) {
		err = vql_admin_identify(ctrl, NVME_ID_CNS_NS_ACTIVE_LIST, nsid);
		if (err)
			return err;
		for (k = 0; k < VQL_ADMIN_DATA_BYTES / 4; k++) {
			if (!list[k])
				return 0;
			nsid = le32_to_cpu(list[k]);
			++*count;
		}
	}
	return 0;
}

/* One by one, of a controller without that list: it came with NVMe 1.1. */
static int count_asked(struct vql_ctrl *ctrl, u32 *count)
{
	const struct nvme_id_ns *id = ctrl->admin.data.cpu;
	u32 nsid;
	int err;

	*count = 0;
	for (nsid = 1; nsid <= min_t(u32, ctrl->nn, VQL_NS_ASKED); nsid++) {
		err = vql_admin_identify(ctrl, NVME_ID_CNS_NS, nsid);
		if (err < 0)
			return err;
		*count += !err && id->nsze;
	}
	return 0;
}

int vql_ctrl_count_namespaces(struct vql_ctrl *ctrl, u32 *count)
{
	int err;

	if (ctrl->quirks & VQL_QUIRK_FEW_CNS)
		return count_asked(ctrl, count);
	err = count_listed(ctrl, count);
	if (err <= 0)
		return err;
	vql_ctrl_note(ctrl, "does not list its namespaces (NVMe status 0x%x): asked one by one\n",
		      err);
	return count_asked(ctrl, count);
}
