/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel lane: queues that the module serves itself, in the vCPU's exit and in the drive's
 * interrupt. What lane.c (a queue that runs), lane_life.c (how it begins and ends), lane_io.c (its requests), lane_mem.c (the guest's memory)
 * kq.c (the module's own queue pairs) and kq_tags.c (who gets their commands) share.
 *
 * A queue is the daemon's or, while it is lent, the lane's. A lane that is lent runs whenever the disk
 * is not frozen and has what it takes; it needs neither a claim nor a lease.
 *
 * Contexts of a lane's code:
 *   kick        interrupts off, inside an eventfd's wake-up and under that eventfd's lock; in the thread that
 *               kicks, or it is left to the worker
 *   interrupt   the controller's, of a command's end
 *   worker      the rest of a kick's work; what waited for a free command. A batch at a time
 *   set-up      process context under disk->lock: start and stop
 *
 * Locks (core.h has the mutexes): an eventfd's → lane->lock → kq->lock, all with interrupts off.
 * The guest is interrupted through an eventfd, too, and lockdep knows no difference: so never under
 * lane->lock, and in a kick not at all (eventfd_signal() refuses to nest): there it is irq_work's.
 */
#ifndef _VQLANE_KMOD_LANE_H
#define _VQLANE_KMOD_LANE_H

#include <linux/irq_work.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <vqlane/blk.h>
#include <vqlane/nvme.h>
#include <vqlane/policy.h>
#include <vqlane/trace.h>
#include "mem/mem.h"
#include "nvme/nvme.h"

struct vql_disk;
struct vql_queue;
struct vql_kq;
struct vql_lane;

enum {
	VQL_LANE_PARTS =
		32, /* commands that one request may become; more are the daemon's to make */
	/* Of a discard, what is one command: none is to take a drive as long as 2 GiB may. */
	VQL_LANE_DISCARD_BYTES = 128 << 20,
	VQL_LANE_NOBODY = 1 << 16, /* no head */
	VQL_LANE_INLINE = 8,       /* requests of one kick, with interrupts off */
};

/* ---- what a disk may reach (lane_io.c) ---- */

#define VQL_LANE_DAEMON U32_MAX /* it is no controller's */

struct vql_lane_target {
	u32 target;
	u32 nsid;
	u32 view; /* index of its controller's first queue pair in kqs; or VQL_LANE_DAEMON */
	bool read_only;
	u8 block_shift;
	u64 sector;
	u64 sectors;
	u64 boundary; /* bytes that no command may cross a multiple of; 0: none */
};

/* Immutable, but for being replaced while no lane runs. */
struct vql_lane_config {
	u32 slot;
	u32 busy_iops;
	u8 id[VQL_ID_BYTES];
	/* By controller VQL_KQ_KINDS of them, by kind: so that of @view, of a kind, is kqs[view + kind]. */
	u32 nkqs;
	struct vql_kq **kqs; /* references */
	u32 *held;           /* tags of each that the disk has; under its kq->lock */
	u32 ntargets;
	struct vql_lane_target targets[]; /* by target, sector */
};

/* From the daemon's words; sleeps, and takes the controllers' locks. */
struct vql_lane_config *vql_lane_config_create(const struct vql_disk_lane *lane);
void vql_lane_config_free(struct vql_lane_config *config);

/* ---- a guest's memory (lane_mem.c) ---- */

/* Kernel address → DMA address of one controller. */
struct vql_lane_view {
	struct vql_region *dma[2]; /* by address: what devices may write; what they may only read */
	u32 ndma[2];
	u32 qpair; /* of the queue pair that they are for (vql_kq_attach()): with it they end */
};

struct vql_lane_mem {
	struct vql_region *regions; /* guest address → kernel address, one for each chunk */
	u32 nregions;
	u32 nviews;
	struct vql_lane_view views[]; /* as config->kqs */
};

/* Under disk->lock, which keeps @ms. Attaches the module's queue pairs to it. */
struct vql_lane_mem *vql_lane_mem_create(struct vql_mspace *ms, struct vql_lane_config *config);
void vql_lane_mem_free(struct vql_lane_mem *mem);
/* A queue pair that its addresses are for was lost. */
bool vql_lane_mem_is_stale(const struct vql_lane_mem *mem, const struct vql_lane_config *config);
/* A part of a ring, in one piece: which may take a mapping of its own (*@map, for vunmap()). */
void *vql_lane_mem_ring(struct vql_lane_mem *mem, u64 guest, u64 bytes, bool write, void **map);

/* ---- requests (lane_io.c) ---- */

/* A request that was taken from the ring, by head. */
struct vql_lane_io {
	struct vql_io io;
	struct vql_blk_answer answer;
	struct vql_trace_io trace;
	u64 taken; /* the how manieth */
	u16 parts; /* commands under way */
	bool busy;
	bool lost; /* one of them was lost: it is not known what became of it */
};

/* A command that is made but not yet given to the controller. */
struct vql_lane_part {
	struct vql_kq *kq;
	u32 at; /* kq's place in kqs */
	u16 tag;
	struct vql_nvme_sqe *sqe; /* the tag's (vql_kq_sqe()) */
};

/* What is needed for one request at a time. */
struct vql_lane_scratch {
	struct vql_chain chain;
	struct vql_lane_part parts[VQL_LANE_PARTS];
	u32 nparts;
};

/* For each of config->kqs. */
struct vql_lane_dma {
	struct vql_mem mem[2]; /* as vql_lane_view has them, with hints of the lane's own */
	u32 qpair;             /* for which the addresses hold */
	bool ring;             /* commands were pushed, and the doorbell is yet to be rung */
};

enum vql_lane_state {
	VQL_LANE_OFF,   /* nothing below is there */
	VQL_LANE_RUNS,  /* takes requests */
	VQL_LANE_STOPS, /* takes no more; goes OFF when none is under way */
};

struct vql_lane {
	struct vql_disk *disk;
	u32 index;
	bool lent;       /* under disk->lock */
	bool taken_back; /* ... but not to be started again; under disk->lock */
	u32 returned;    /* enum vql_queue_returned; under disk->lock */
	bool dirty;      /* under disk->lock */

	/* Under disk->lock, while OFF; read also by who runs the lane. */
	struct vql_lane_config *config;
	struct vql_lane_dma *dma;
	struct vql_lane_io *ios; /* by head */
	u16 *answered;           /* heads of entries that are not published; room for all */
	struct vql_lane_scratch *scratch;
	void *maps[3];
	bool durable; /* each write is to be on the medium when it is answered */

	spinlock_t lock;             /* all below */
	enum vql_lane_state state;   /* read also without */
	enum vql_queue_returned why; /* it stops for good; NOT: only for now */
	int ring_error;
	struct vql_ring ring;
	struct vql_mem mem;
	struct vql_blk_disk blk;
	u32 in_flight; /* requests */
	u32 lost;
	u64 taken;
	u64 served;
	u32 refused;    /* of these, for a remap program's answer; read also without */
	u32 waited_for; /* head that found no free command, or VQL_LANE_NOBODY */
	u32 nanswered;
	bool signal_due; /* the guest wants an interrupt */
	bool busy;
	u32 recent;               /* requests in this window */
	unsigned long window_end; /* jiffies */
	/* In line for so many commands of config->kqs[line_at]; also under that kq->lock. */
	struct list_head waiting;
	u32 line_at;
	u32 needs;

	/* What workers have used, since when (jiffies); read also without the lock. */
	u64 worked_ns;
	unsigned long work_window;

	struct irq_work signal;
	struct work_struct serve_work;
	struct work_struct patient_work; /* the same, for one that has had its share */
};

/* How taking a request ended, where it is not 0 (submitted) or 1 (answered). */
#define VQL_LANE_WAIT (-EAGAIN)      /* no free command: lane->waiting was put on a list */
#define VQL_LANE_VERDICT (-EREMOTE)  /* the daemon's, by the remap program's word */
#define VQL_LANE_SHAPE (-EOPNOTSUPP) /* the daemon's, by its shape */
#define VQL_LANE_GONE (-ENODEV)      /* its controller's queue pair was lost */

/*
 * Make commands of @io and give them to the controllers. 0: under way, @io->parts of them; 1: its
 * status is final; or why it stays where it is, with nothing changed. Under lane->lock.
 */
int vql_lane_submit(struct vql_lane *lane, u16 head, struct vql_lane_io *io);
/*
 * For the daemon, about a request that stayed at the head of the ring: @req's verdict is VQL_SERVE only where the
 * disk has a right to the answer. -EINVAL: there is no configuration. Under disk->lock.
 */
int vql_lane_ask(struct vql_lane *lane, struct vqlane_remap_req *req);
/* Ring the doorbells of what was submitted. */
void vql_lane_ring_doorbells(struct vql_lane *lane);

/* ---- lane.c: while it runs ---- */

int vql_lane_init(void);
void vql_lane_exit(void);
void vql_lane_setup(struct vql_lane *lane, struct vql_disk *disk, u32 index);
/* True: the kick was for the lane. Any context that kick_vq() has. */
bool vql_lane_kick(struct vql_lane *lane);
/* There may be free commands again. */
void vql_lane_wake(struct vql_lane *lane);
/* Those that were queued are not run, or their run is over. Nobody wakes it meanwhile. */
void vql_lane_cancel_works(struct vql_lane *lane);

/* A command has ended. */
struct vql_lane_end {
	struct vql_lane *lane;
	u16 head;
	u16 status; /* enum vql_status, or VQL_LANE_LOST */
	u16 nvme;   /* the drive's word: status code and type, NVMe 2.0 §4.2.3 */
};
#define VQL_LANE_LOST 0xffff
/* @n of them, in any order, which this uses up. In an interrupt, or in a worker. */
void vql_lane_ended(struct vql_lane_end *end, u32 n);

/* Somebody is to look at the disk's lanes: vql_lane_work(). Any context. */
void vql_lane_poke(struct vql_disk *disk);

/* ---- lane_life.c: under disk->lock, but for the work ---- */

/* What lanes have to say to the disk, or to those who wait for them. */
void vql_lane_work(struct work_struct *work);
/*
 * A controller is being reset: lanes stay lent, and OFF, until it has started. Nothing tells of that here, so
 * vql_lanes_retry() tries again; a daemon need not be there for it.
 */
void vql_lanes_start_later(struct vql_disk *disk);
void vql_lanes_retry(struct work_struct *work);
/* Exchanges the disk's configuration; without one no queue is lent any more. Lets go of the lock. */
int vql_lanes_config(struct vql_disk *disk, struct vql_lane_config **config);
/*
 * If its lanes' addresses are stale: stops and starts those that run. Before another one starts, which would have the
 * same. Lets go of the lock.
 */
void vql_lanes_renew(struct vql_disk *disk);
int vql_lane_lend(struct vql_queue *q, u16 next_avail);
/* The loan is to end. */
void vql_lane_take(struct vql_queue *q);
/*
 * All lanes stop for now: @ask begins it, @wait (which lets go of the lock) ends it. What is under way has @left
 * (jiffies) to end by itself.
 */
void vql_lanes_ask_stop(struct vql_disk *disk);
void vql_lanes_wait_stopped(struct vql_disk *disk, long left);
/* Those that are lent go on, if the disk can be served. */
void vql_lanes_start(struct vql_disk *disk);
/* The configuration space has changed. */
void vql_lanes_refresh(struct vql_disk *disk);
/* The driver has reset the disk: no queue is lent any more. Lanes are stopped. */
void vql_lanes_reset(struct vql_disk *disk);

/* ---- kq.c: a controller's queue pair for all lanes ---- */

/* Process context. The same for all of one controller and kind; ERR_PTR when it cannot have one. */
struct vql_kq *vql_kq_get(struct vql_ctrl *ctrl, enum vql_kq_kind kind);
void vql_kq_put(struct vql_kq *kq);
/* Make a new queue pair if the last was lost. */
int vql_kq_revive(struct vql_kq *kq);
/*
 * Sets @dma, of each chunk (none for one whose commands have no data: false), and @qpair, the number of the queue pair
 * for which they hold.
 */
int vql_kq_attach(struct vql_kq *kq, struct vql_mspace *ms, u64 *dma, u32 *qpair);
bool vql_kq_has_data(const struct vql_kq *kq);
/* Does it still have that queue pair? */
bool vql_kq_has(struct vql_kq *kq, u32 qpair);
/* Delete its queue pair, if @lane has commands there: what is under way ends as lost, before this returns. */
void vql_kq_abandon(struct vql_kq *kq, const struct vql_lane *lane);
/* What the interrupt handler still does for any lane is over when this returns. */
void vql_kq_synchronize(struct vql_kq *kq);

struct vql_kq_limits {
	struct vql_nvme_limits most;
	bool sgl;
	bool volatile_cache;
	bool write_zeroes;
	bool discard;
	u16 crdt[3]; /* command retry delay times, in 100 ms */
};
const struct vql_kq_limits *vql_kq_limits(const struct vql_kq *kq);
struct vql_ctrl *vql_kq_ctrl(struct vql_kq *kq);

/*
 * Under a lane's lock, with interrupts off throughout: a command for the queue pair that the lane knows as
 * config->kqs[at]. A tag, or -EAGAIN: then the lane is in line; or -ENODEV: that queue pair was lost, and what is known
 * of addresses with it.
 */
int vql_kq_reserve(struct vql_lane *lane, u32 at, u16 head);
void vql_kq_cancel(struct vql_kq *kq, u16 tag);
/* The page for the tag's list. */
void *vql_kq_page(struct vql_kq *kq, u16 tag);
u64 vql_kq_page_dma(struct vql_kq *kq, u16 tag);
/*
 * The tag's command, for who has reserved it to write. It stays there until the command has ended, in case that it
 * fails for now and is submitted again.
 */
struct vql_nvme_sqe *vql_kq_sqe(struct vql_kq *kq, u16 tag);
/* False: the queue pair was lost, and so is the command; the tag is free. */
bool vql_kq_push(struct vql_kq *kq, u16 tag);
void vql_kq_ring(struct vql_kq *kq);
/* Its identifier on the controller, for traces. */
u16 vql_kq_qid(const struct vql_kq *kq);
/* No longer in line for a free command: who keeps a place must come and try. Under lane->lock. */
void vql_kq_leave_line(struct vql_lane *lane);

/* ---- remap.c: BPF programs that tell where a request's bytes rest ---- */

int vql_remap_init(void);
/*
 * Ask @disk's policy, or the default one where it has none; the fields of @req that are in are the
 * caller's. False: there is none. An answer is a program's word: target, sectors and verdict are for the
 * caller to check. In any context but an NMI's; does not sleep.
 */
bool vql_remap_ask(struct vql_disk *disk, struct vqlane_remap_req *req);

#endif
