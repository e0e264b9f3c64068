/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * NVMe controllers and their queue pairs: what pci.c, ctrl.c, admin.c and qpair.c share.
 *
 * A controller's states, and what is true in each (changed under ctrl->lock only):
 *   LIVE       the controller is enabled; each queue pair whose state word says LIVE exists on it
 *   RESETTING  disabled, or on its way; no live queue pair
 *   DEAD       it cannot do DMA (disabled, bus mastering off, or not there); no live queue pair;
 *              nothing here touches its registers again
 * So a live queue pair has a live controller, and no state but LIVE lets a queue pair do DMA.
 *
 * What user space has mapped of a controller (queues, doorbells) is inserted by a fault handler
 * under vql_attach_lock if the queue pair is live, and a queue pair stops being live under the same
 * lock, before its mappings are zapped. So memory may be freed after the zap.
 */
#ifndef _VQLANE_KMOD_CTRL_H
#define _VQLANE_KMOD_CTRL_H

#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/interrupt.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/nvme.h>
#include <linux/pci.h>
#include <linux/poll.h>
#include <linux/scatterlist.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "core/core.h"
#include "mem/mem.h"
#include "nvme/nvme.h"

enum {
	VQL_MAX_CTRL_QPAIRS = 64, /* of one controller, whatever it would grant */
	VQL_MAX_STRIDE =
		2048, /* bytes from doorbell to doorbell: the two of a queue pair share a page */
	VQL_ADMIN_DEPTH = 32,
	VQL_ADMIN_DATA_BYTES = 4096,
};

/* What a drive wants care for: quirks.c. */
enum {
	VQL_QUIRK_DELAY = BIT(0), /* CSTS is not to be read at once after CC.EN was cleared */
	VQL_QUIRK_NO_WRITE_ZEROES = BIT(1), /* it says that it has Write Zeroes */
	VQL_QUIRK_NO_DISCARD = BIT(2),      /* … Dataset Management */
	VQL_QUIRK_NO_SHADOW = BIT(3),       /* … shadow doorbells */
	VQL_QUIRK_FEW_CNS = BIT(4), /* Identify has CNS 00h and 01h only, whatever VS says */
	VQL_QUIRK_DMA48 = BIT(5),   /* no DMA address of more than 48 bits */
	VQL_QUIRK_DEPTH2 = BIT(6),  /* it fails with more than one command in a queue */
	VQL_QUIRK_DEPTH64 = BIT(7), /* where CAP.MQES is 0, its queues have 64 entries */
	VQL_QUIRK_STRIPE = BIT(8),  /* slow across multiples of MDTS: NOIOB where it tells none */
};

/* Memory for the controller, in whole pages, zeroed; and those pages, for a fault handler. */
struct vql_coherent {
	void *cpu; /* NULL: none */
	dma_addr_t dma;
	size_t bytes;
	struct sg_table pages;
};

/* The admin queue. */
struct vql_admin {
	/* Under ctrl->lock: one command at a time, so the data page has one user. */
	struct vql_coherent sq;
	struct vql_coherent cq;
	struct vql_coherent data;
	u16 last_cid;
	wait_queue_head_t wait;

	spinlock_t lock; /* leaf; also taken by the interrupt handler. Guards what follows. */
	u16 tail;
	u16 head;
	u16 phase;
	u16 cid; /* of the command that is waited for; 0: none */
	bool done;
	u16 status;
	u32 result;
	bool has_event;
	u32 event;
};

struct vql_ctrl {
	struct kref ref;
	char name[16]; /* PCI address */
	struct miscdevice misc;
	char misc_name[32]; /* also its interrupt's */
	char node_name[32];
	struct pci_dev *pdev;   /* not to be used once DEAD */
	struct device *dma_dev; /* under vql_attach_lock; NULL once unbound */
	u32 mappers; /* under vql_attach_lock; views that are being made or unmapped without it */
	void __iomem *bar;
	/*
	 * The hardware is not to be waited for. Set without ctrl->lock, so that who waits under it
	 * gives up at once; cleared by the PCI error handlers, under it.
	 */
	bool offline;
	/*
	 * Who waits for this controller and is waited for by a VMM: changed without the lock by who
	 * comes and goes, read by who holds the lock and waits for the hardware, so that he gives
	 * up sooner. A count that is seen late costs one more second.
	 */
	atomic_t hurried;

	struct mutex lock; /* guards what follows, and hardware access */
	struct vql_admin admin;
	struct list_head qpairs;                       /* all that have memory of the controller */
	struct vql_kq *kqs[VQL_KQ_KINDS];              /* the kernel lane's, or NULL */
	DECLARE_BITMAP(qids, VQL_MAX_CTRL_QPAIRS + 1); /* in use; 0 is the admin queue's */
	unsigned int vectors; /* MSI-X: 0 is the admin queue's, N that of queue pair N */
	unsigned int stride;  /* bytes from doorbell to doorbell */
	unsigned int ready_ms;
	unsigned int shutdown_ms;
	u32 nn;         /* NN: identifiers of namespaces are 1 to this */
	u32 quirks;     /* VQL_QUIRK_*; does not change */
	bool suspended; /* the host sleeps, and it was LIVE before */
	bool restarts; /* it was reset, and restart_work is to start it again; also read without the lock */
	u32 turn;                   /* counts changes of state: who let go of the lock sees them */
	struct vql_coherent shadow; /* doorbells, and below their event indices (DBBUF) */
	struct vql_coherent event_index;
	struct work_struct event_work;
	struct work_struct restart_work;

	spinlock_t info_lock; /* leaf; guards what follows (info is changed under ctrl->lock too) */
	struct vql_ctrl_info info;
	u32 news; /* counts what POLLPRI tells */
	wait_queue_head_t wait;
};

struct vql_qpair {
	struct kref ref;
	struct vql_ctrl *ctrl; /* a reference */
	struct vql_qpair_status *status;
	struct address_space *mapping; /* of the file; under vql_attach_lock, NULL after release */
	struct vql_attachments attachments;

	/* Of one that the module drives itself (kq.c); set before it is started. */
	void *owner;
	irq_handler_t handler;            /* NULL: it is a file's */
	void (*lost)(struct vql_qpair *); /* it is not live any more; under ctrl->lock */

	/* Under ctrl->lock. Does not change while the queue pair is live. */
	struct list_head list; /* ctrl->qpairs: while there is memory of the controller */
	u16 qid;
	u32 depth;
	u32 pool_pages;
	bool ended; /* not live, and all is done that its end brings; also read without the lock */
	struct vql_coherent sq;
	struct vql_coherent cq;
	struct vql_coherent pool;
	u32 doorbell; /* offset of the submission doorbell from the first */
	bool has_shadow;

	struct mutex irq_lock; /* leaf; guards irq, and enabling it */
	int irq;               /* 0: none */
	char irq_name[32];
	atomic_t is_armed;
	bool fired;
	wait_queue_head_t wait;
};

/* Stays so under ctrl->lock, and under vql_attach_lock. */
static inline bool vql_qpair_is_live(const struct vql_qpair *qp)
{
	return READ_ONCE(qp->status->state) == VQL_QPAIR_LIVE;
}

#define vql_ctrl_warn(ctrl, fmt, ...) pr_warn("%s: " fmt, (ctrl)->name, ##__VA_ARGS__)
#define vql_ctrl_note(ctrl, fmt, ...) pr_info("%s: " fmt, (ctrl)->name, ##__VA_ARGS__)

/* ---- ctrl.c: the controller's life. All under ctrl->lock, but for alloc and set_offline. ---- */

struct vql_ctrl *vql_ctrl_alloc(struct pci_dev *pdev);
/*
 * From disabled to LIVE. On failure it is stopped and DEAD; offline, RESETTING. It lets go of the lock while the
 * controller becomes ready: if the state was changed meanwhile, that is left alone (-ECANCELED).
 */
int vql_ctrl_start(struct vql_ctrl *ctrl);
/*
 * From any state to RESETTING (DEAD if the controller does not obey): when it returns the
 * controller does no DMA, and no queue pair is live.
 */
void vql_ctrl_stop(struct vql_ctrl *ctrl);
/* The same for one whose registers cannot be reached for now: PCI error recovery. */
void vql_ctrl_freeze(struct vql_ctrl *ctrl);
/*
 * First, where the controller takes commands and time is no matter: deletes all I/O queues, so that
 * every command has had its end before the controller is stopped. From LIVE to RESETTING.
 */
void vql_ctrl_quiesce(struct vql_ctrl *ctrl);
/*
 * Stop, and start in a work: who waits for the end of a queue pair does not wait for the controller to be of use again.
 * One that is offline stays RESETTING (-ENODEV).
 */
int vql_ctrl_reset(struct vql_ctrl *ctrl);
/* Takes ctrl->lock, when no restart is under way: for who stops it in an orderly manner, device lock held. */
void vql_ctrl_lock_started(struct vql_ctrl *ctrl);
/*
 * Waits, without the lock, for the end of the restart that vql_ctrl_reset() has begun. 0: it is LIVE; -EAGAIN: somebody
 * else resets it by now; -ENODEV: it is DEAD; -ERESTARTSYS: killed.
 */
int vql_ctrl_wait_restarted(struct vql_ctrl *ctrl);
/*
 * Stop for good, orderly (NVMe 2.0 §3.6.1): caches are written back, then DEAD. It is not disabled after that, which
 * would be a reset and have it start up again: what keeps it from DMA is that it is no bus master any more.
 */
void vql_ctrl_shutdown(struct vql_ctrl *ctrl);
/* The same for the time that the host sleeps: then RESETTING, until vql_ctrl_resume(). One not LIVE stays as it is. */
void vql_ctrl_suspend(struct vql_ctrl *ctrl);
void vql_ctrl_resume(struct vql_ctrl *ctrl);
/*
 * Takes ctrl->lock as long as the controller is LIVE: a restart has it for minutes, and nothing can be done meanwhile.
 * Without sleeping in line for the lock, it sees the end of LIVE at once. -EAGAIN: RESETTING; -ENODEV: DEAD; -EINTR:
 * killed.
 */
int vql_ctrl_lock_live(struct vql_ctrl *ctrl);
/* The same for who is waited for by a VMM (set_map(), under its mmap lock): hurries who has the lock, and himself. */
int vql_ctrl_lock_hurried(struct vql_ctrl *ctrl);
void vql_ctrl_unlock_hurried(struct vql_ctrl *ctrl);
/* Nobody waits for the hardware from now on. Takes no lock. */
void vql_ctrl_set_offline(struct vql_ctrl *ctrl);
bool vql_ctrl_absent(struct vql_ctrl *ctrl);
/* 0 when LIVE, else -EAGAIN or -ENODEV. */
int vql_ctrl_usable(struct vql_ctrl *ctrl);
/* Queue identifiers were taken or given back. */
void vql_ctrl_set_free(struct vql_ctrl *ctrl);

int vql_coherent_alloc(struct device *dev, struct vql_coherent *mem, size_t bytes);
void vql_coherent_free(struct device *dev, struct vql_coherent *mem); /* none: does nothing */

/* ---- quirks.c ---- */

/* Fills in ctrl->quirks, by the function's PCI identifiers. */
void vql_ctrl_find_quirks(struct vql_ctrl *ctrl);

/* ---- ctrl_identify.c: what it tells of itself. All under ctrl->lock. ---- */

/* @id: of Identify Controller. */
void vql_ctrl_read_identity(struct vql_ctrl *ctrl, const struct nvme_id_ctrl *id,
			    struct vql_ctrl_info *info);
/*
 * Limits that only some controllers tell; how many namespaces are active. 0, also where it refuses to tell;
 * less than 0 when it did not answer, as in vql_admin_run().
 */
int vql_ctrl_read_limits(struct vql_ctrl *ctrl, struct vql_ctrl_info *info);
int vql_ctrl_count_namespaces(struct vql_ctrl *ctrl, u32 *count);

/* ---- admin.c: the admin queue. All under ctrl->lock, but for irq. ---- */

int vql_admin_alloc(struct vql_ctrl *ctrl);
void vql_admin_free(struct vql_ctrl *ctrl);
/* Start over with empty rings; the controller is disabled, and told of them. */
void vql_admin_begin(struct vql_ctrl *ctrl);
irqreturn_t vql_admin_irq(int irq, void *ctrl);
/*
 * Run a command and wait. 0; or the NVMe status (> 0); or -ENODEV, -EIO, -ETIMEDOUT when the
 * controller did not answer. In state LIVE it was then reset: all queue pairs are lost.
 */
int vql_admin_run(struct vql_ctrl *ctrl, struct nvme_command *cmd, u32 *result);
/* The answer is in ctrl->admin.data. */
int vql_admin_identify(struct vql_ctrl *ctrl, u8 cns, u32 nsid);
int vql_admin_log(struct vql_ctrl *ctrl, u8 page, u32 nsid, u32 bytes, bool keep_event);
int vql_admin_set_feature(struct vql_ctrl *ctrl, u8 feature, u32 value, u32 *result);
int vql_admin_create_cq(struct vql_ctrl *ctrl, u16 qid, dma_addr_t dma, u32 depth, int vector);
int vql_admin_create_sq(struct vql_ctrl *ctrl, u16 qid, dma_addr_t dma, u32 depth);
int vql_admin_delete(struct vql_ctrl *ctrl, u8 opcode, u16 qid);
int vql_admin_abort(struct vql_ctrl *ctrl, u16 qid, u16 cid);
int vql_admin_set_shadow(struct vql_ctrl *ctrl);
/* Host Behavior Support: Advanced Command Retry, and nothing else. Overwrites what Identify has told. */
int vql_admin_set_behavior(struct vql_ctrl *ctrl);
/* Ask for the next asynchronous event; ctrl->event_work runs when it has come. */
void vql_admin_await_event(struct vql_ctrl *ctrl);
bool vql_admin_take_event(struct vql_ctrl *ctrl, u32 *event);

/* ---- ctrl_file.c: /dev/vqlane/nvme-… Without ctrl->lock. ---- */

int vql_ctrl_publish(struct vql_ctrl *ctrl);
void vql_ctrl_unpublish(struct vql_ctrl *ctrl); /* open files stay */

/* ---- qpair.c ---- */

long vql_qpair_create(struct vql_ctrl *ctrl, struct vql_qpair_create __user *arg);
/*
 * One without a file, for the module itself, with an interrupt that is always on (EOPNOTSUPP: there is none, or
 * the controller's queues are smaller).
 * @lost is called once it is not live any more, when no handler runs. Under ctrl->lock.
 */
struct vql_qpair *vql_qpair_open_locked(struct vql_ctrl *ctrl, u32 depth, u32 pool_pages,
					void *owner, irq_handler_t handler,
					void (*lost)(struct vql_qpair *));
/* No handler of its interrupt runs any more that ran before. Without ctrl->lock. */
void vql_qpair_synchronize(struct vql_qpair *qp);
/* Delete it and let go of all that it knew. */
void vql_qpair_close_locked(struct vql_qpair *qp);
/*
 * The controller does no DMA any more: no queue pair of it is live from now on, each has at least
 * @state. Under ctrl->lock.
 */
void vql_qpairs_end(struct vql_ctrl *ctrl, enum vql_qpair_state state);
/* Delete all on the live controller, as well as it goes: it is stopped next. Under ctrl->lock. */
void vql_qpairs_delete(struct vql_ctrl *ctrl);
/* The hardware goes: let go of all memory that it knew. After vql_qpairs_end(). */
void vql_qpairs_free(struct vql_ctrl *ctrl);

/* ---- qpair_map.c ---- */

int vql_qpair_mmap(struct file *file, struct vm_area_struct *vma);
/* All but the status page and the DMA tables: SIGBUS from now on. Under vql_attach_lock. */
void vql_qpair_zap(struct vql_qpair *qp);

#endif
