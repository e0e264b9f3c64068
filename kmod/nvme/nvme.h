/* SPDX-License-Identifier: GPL-2.0-only */
/* NVMe controllers and their queue pairs: what other rooms ask of them. */
#ifndef VQL_NVME_H
#define VQL_NVME_H

#include "core/core.h"

/* The queue pairs that the kernel lane has on a controller. */
enum vql_kq_kind {
	VQL_KQ_FAST, /* reads, writes, flushes */
	VQL_KQ_SLOW, /* discards and write zeroes, which may take a drive as long as it likes */
	VQL_KQ_KINDS,
};

int vql_ctrl_init(void);
void vql_ctrl_exit(void);

/* For DMA mappings; NULL once the hardware is gone. Under vql_attach_lock. */
struct device *vql_ctrl_dma_dev(struct vql_ctrl *ctrl);
/* For messages, at any time. */
const char *vql_ctrl_name(const struct vql_ctrl *ctrl);
void vql_ctrl_get(struct vql_ctrl *ctrl);
void vql_ctrl_put(struct vql_ctrl *ctrl);
/* The controller of a file of /dev/vqlane/nvme-…, with a reference; ERR_PTR(-EBADF) or -EINVAL. */
struct vql_ctrl *vql_ctrl_of_fd(int fd);
/* A namespace's geometry; as VQL_IOC_NS_INFO. Takes ctrl->lock. */
int vql_ctrl_ns(struct vql_ctrl *ctrl, struct vql_ns_info *info);

/* ---- qpair.c ---- */

/*
 * Delete the queue pair on its controller, whatever it takes (a controller that does not answer is
 * reset or disabled), mark it lost, zap its mappings and wake its holder. When this returns no DMA
 * of its commands happens any more. Idempotent; sleeps. Takes ctrl->lock: not under it, and not
 * under vql_attach_lock. Attachments stay until vql_attach_drop_*.
 */
void vql_qpair_kill(struct vql_qpair *qp);
void vql_qpair_get(struct vql_qpair *qp); /* keeps the structure, not the queues */
void vql_qpair_put(struct vql_qpair *qp);
struct vql_ctrl *vql_qpair_ctrl(struct vql_qpair *qp);
/* Is it the module's own? Those a fence leaves alone: their commands are the module's to end. */
bool vql_qpair_is_own(const struct vql_qpair *qp);

#endif
