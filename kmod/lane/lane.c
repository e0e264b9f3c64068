// SPDX-License-Identifier: GPL-2.0-only
/*
 * A queue in the kernel lane while it runs: kicked, served, answered. lane_life.c starts and stops it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include "disk/disk.h"
#include "lane/trace.h"

/* Windows a second, in which a lane's requests are counted. */
#define BUSY_WINDOWS 10

/*
 * What a lane's workers may use of a window of 100 ms with high priority, since a guest waits for them. A guest that
 * needs more (or that makes work for itself without end: its rings may overlap, its interrupt may be its own kick) goes
 * on as any other thread of the machine.
 */
#define URGENT_NS (5 * NSEC_PER_MSEC)
#define URGENT_WINDOW (HZ / 10)

static struct workqueue_struct *lane_wq;    /* high priority */
static struct workqueue_struct *patient_wq; /* as any thread */

/* With a reference on the disk while the work is queued. */
void vql_lane_poke(struct vql_disk *disk)
{
	vql_disk_get(disk);
	/* Not the last reference: a VMM has the disk open while a lane does anything. */
	if (!queue_work(lane_wq, &disk->lane_work))
		vql_disk_put(disk);
}

/* With a reference, as above. What is queued already comes soon enough. */
void vql_lanes_start_later(struct vql_disk *disk)
{
	vql_disk_get(disk);
	if (!queue_delayed_work(lane_wq, &disk->lane_retry, max(HZ / 10, 1)))
		vql_disk_put(disk);
}

/* Lockless: with the wrong answer a work is run once with the wrong priority. */
static bool is_urgent(const struct vql_lane *lane)
{
	return READ_ONCE(lane->worked_ns) < URGENT_NS ||
	       time_after_eq(jiffies, READ_ONCE(lane->work_window) + URGENT_WINDOW);
}

void vql_lane_wake(struct vql_lane *lane)
{
	if (is_urgent(lane))
		queue_work(lane_wq, &lane->serve_work);
	else
		queue_work(patient_wq, &lane->patient_work);
}

/* ---- while it runs; all under lane->lock ---- */

static void lane_stop(struct vql_lane *lane, enum vql_queue_returned why)
{
	if (lane->state == VQL_LANE_RUNS) {
		WRITE_ONCE(lane->state, VQL_LANE_STOPS);
		lane->why = why;
	}
	vql_kq_leave_line(lane);
	vql_lane_poke(lane->disk);
}

/* The driver broke the rules in a way that cannot be answered. */
static void lane_break(struct vql_lane *lane, int error)
{
	lane->ring_error = error;
	trace_vqlane_error(lane->config->slot, (u16)lane->index, -EINVAL,
			   vql_ring_error_text(error));
	lane_stop(lane, VQL_RETURNED_NOT);
}

static void count(struct vql_lane *lane)
{
	u32 busy = lane->config->busy_iops;

	lane->served++;
	if (!busy || lane->busy)
		return;
	if (time_after_eq(jiffies, lane->window_end)) {
		lane->window_end = jiffies + HZ / BUSY_WINDOWS;
		lane->recent = 0;
	}
	if (++lane->recent >= max(busy / BUSY_WINDOWS, 1u)) {
		lane->busy = true;
		vql_lane_poke(lane->disk);
	}
}

/* Publish what was answered. */
static void publish(struct vql_lane *lane)
{
	u64 now;
	u32 i;

	if (!lane->nanswered)
		return;
	vql_ring_publish(&lane->ring);
	lane->signal_due |= vql_ring_should_interrupt(&lane->ring);
	now = ktime_get_ns();
	for (i = 0; i < lane->nanswered; i++) {
		struct vql_trace_io *trace = &lane->ios[lane->answered[i]].trace;

		trace->completed = now;
		trace_vqlane_complete(trace);
	}
	lane->nanswered = 0;
}

/* Its status is final: write it, and an entry that is yet to be published. */
static void answer(struct vql_lane *lane, u16 head, struct vql_lane_io *io)
{
	/* A driver that makes heads available twice must not get more entries than the ring has. */
	if (lane->nanswered == lane->ring.num)
		publish(lane);
	vql_ring_push(&lane->ring, head, vql_blk_finish(&io->io, &io->answer));
	io->trace.op = io->io.op;
	io->trace.bytes = io->io.bytes;
	io->trace.status = io->io.status;
	lane->answered[lane->nanswered++] = head;
	count(lane);
}

/* Publish what was answered. True: the guest wants an interrupt. */
static bool settle(struct vql_lane *lane)
{
	bool due;

	publish(lane);
	due = lane->signal_due;
	lane->signal_due = false;
	return due;
}

static void begin_trace(struct vql_lane *lane, u16 head, struct vql_lane_io *io, u64 fetched)
{
	io->trace = (struct vql_trace_io){
		.slot = lane->config->slot,
		.queue = (u16)lane->index,
		.head = head,
		.op = io->io.op,
		.lane = VQL_LANE_KERNEL,
		.sector = io->io.sector,
		.bytes = io->io.bytes,
		.fetched = fetched,
	};
	trace_vqlane_fetch(&io->trace);
}

/* The request at the head of the ring. 0: taken; else the lane takes no more for now. */
static int take(struct vql_lane *lane)
{
	struct vql_lane_io *io;
	u16 head = vql_ring_peek(&lane->ring);
	u64 fetched = ktime_get_ns();
	int err;

	err = vql_chain_walk(&lane->ring, &lane->mem, head, &lane->scratch->chain);
	if (err) {
		lane_break(lane, -err);
		return err;
	}
	/*
	 * Here each contiguous piece of the guest's memory is a region of its own, in the daemon its
	 * memory is flat: there the chain may well fit.
	 */
	if (lane->scratch->chain.truncated) {
		lane_stop(lane, VQL_RETURNED_SHAPE);
		return VQL_LANE_SHAPE;
	}
	io = &lane->ios[head];
	if (io->busy) { /* made available again while it is under way */
		lane_break(lane, VQL_RING_BAD_HEAD);
		return -VQL_RING_BAD_HEAD;
	}
	err = vql_blk_parse(&lane->scratch->chain, &lane->blk, &io->io, &io->answer);
	if (err < 0) {
		lane_break(lane, -err);
		return err;
	}
	if (lane->waited_for != head)
		begin_trace(lane, head, io, fetched);
	lane->waited_for = VQL_LANE_NOBODY;
	err = err == VQL_BLK_ANSWERED ? 1 : vql_lane_submit(lane, head, io);
	switch (err) {
	case 1: answer(lane, head, io); break;
	case 0:
		io->busy = true;
		io->taken = lane->taken++;
		lane->in_flight++;
		if (!io->parts) { /* each of them was lost at once: nobody else will say so */
			lane->lost++;
			lane_stop(lane, VQL_RETURNED_LOST);
		}
		break;
	case VQL_LANE_WAIT: lane->waited_for = head; return err;
	case VQL_LANE_VERDICT: lane_stop(lane, VQL_RETURNED_VERDICT); return err;
	case VQL_LANE_GONE: lane_stop(lane, VQL_RETURNED_LOST); return err;
	default: lane_stop(lane, VQL_RETURNED_SHAPE); return err;
	}
	lane->ring.next_avail++;
	return 0;
}

/*
 * Take what is available, @most requests of it. True: there may be more. When it is false, the driver
 * has been asked for a kick, or a free command, a work or the next start brings the lane back here.
 */
static bool serve(struct vql_lane *lane, u32 most)
{
	bool more = false, waits = false;
	int pending, err;

	while (lane->state == VQL_LANE_RUNS) {
		pending = vql_ring_pending(&lane->ring);
		if (pending < 0) {
			lane_break(lane, -pending);
			break;
		}
		/* A driver may say by turns that there is something and that there is nothing: that counts, too. */
		if (!pending && !vql_ring_arm(&lane->ring))
			break;
		if (!most--) {
			more = true;
			break;
		}
		if (!pending)
			continue;
		err = take(lane);
		waits = err == VQL_LANE_WAIT;
		if (err)
			break;
	}
	/* A driver may have taken back what it waited for: nobody else is to wait for that. */
	if (!waits)
		vql_kq_leave_line(lane);
	vql_lane_ring_doorbells(lane);
	return more;
}

/* The drive refuses, or fails: not for the guest alone to know. */
static void tell_failure(struct vql_lane *lane, const struct vql_lane_io *io, u16 nvme)
{
	trace_vqlane_error(lane->config->slot, (u16)lane->index, -EIO, "NVMe command failed");
	dev_warn_ratelimited(
		&lane->disk->vdev.dev,
		"I/O error: operation %u of %llu bytes at sector %llu, NVMe status 0x%03x\n",
		io->io.op, io->io.bytes, io->io.sector, nvme);
}

/* A command has ended. */
static void end_part(struct vql_lane *lane, const struct vql_lane_end *end)
{
	struct vql_lane_io *io = &lane->ios[end->head];

	if (end->status == VQL_LANE_LOST)
		io->lost = true;
	else if (io->io.status < end->status)
		io->io.status = (u8)end->status;
	if (end->status == VQL_STATUS_IOERR)
		tell_failure(lane, io, end->nvme);
	if (--io->parts)
		return;
	if (io->lost) {
		lane->lost++;
		lane_stop(lane, VQL_RETURNED_LOST);
		return;
	}
	io->trace.device_done = ktime_get_ns();
	io->busy = false;
	lane->in_flight--;
	answer(lane, end->head, io);
}

/* Nothing is under way but what is lost: who waits for that is to know. */
static void tell_if_done(struct vql_lane *lane)
{
	if (lane->state == VQL_LANE_STOPS && lane->in_flight == lane->lost)
		vql_lane_poke(lane->disk);
}

/* ---- contexts ---- */

/*
 * A kick is served where it comes from only if that is the thread of whoever kicks: then it is their time, and their
 * SIGKILL ends it. Everything else is a bell that is a kick as well (one eventfd for both, or two queues wired
 * crosswise): rung by our interrupt, irq_work or worker, it would have us serve, and ring it again, from within.
 */
static bool is_kickers_own(void) { return in_task() && !(current->flags & PF_KTHREAD); }

bool vql_lane_kick(struct vql_lane *lane)
{
	unsigned long flags;
	bool more = true, signal = false;

	if (READ_ONCE(lane->state) == VQL_LANE_OFF)
		return false;
	spin_lock_irqsave(&lane->lock, flags);
	if (lane->state == VQL_LANE_OFF) {
		spin_unlock_irqrestore(&lane->lock, flags);
		return false;
	}
	if (is_kickers_own()) {
		more = serve(lane, VQL_LANE_INLINE);
		signal = settle(lane);
		tell_if_done(lane);
	}
	/* Under the lock: with the lane OFF both have been waited for. */
	if (signal)
		irq_work_queue(&lane->signal);
	if (more)
		vql_lane_wake(lane);
	spin_unlock_irqrestore(&lane->lock, flags);
	return true;
}

static void lane_signal(struct irq_work *work)
{
	vql_bell_ring(&vql_lane_queue(container_of(work, struct vql_lane, signal))->bell);
}

/* Under lane->lock: a worker has served for @ns. */
static void count_work(struct vql_lane *lane, u64 ns)
{
	if (time_after_eq(jiffies, lane->work_window + URGENT_WINDOW)) {
		WRITE_ONCE(lane->work_window, jiffies);
		WRITE_ONCE(lane->worked_ns, 0);
	}
	WRITE_ONCE(lane->worked_ns, lane->worked_ns + ns);
}

/*
 * One batch, and then the work is queued anew, if there is more: behind other lanes' works, and with the priority that
 * is right by then. Twice at a time it may run (there are two works): the lock makes that harmless.
 */
static void serve_in_worker(struct vql_lane *lane)
{
	u64 start = ktime_get_ns();
	unsigned long flags;
	bool more, signal;

	spin_lock_irqsave(&lane->lock, flags);
	more = lane->state != VQL_LANE_OFF && serve(lane, VQL_BATCH);
	signal = settle(lane);
	tell_if_done(lane);
	count_work(lane, ktime_get_ns() - start);
	/* Under the lock, as in a kick. */
	if (more)
		vql_lane_wake(lane);
	spin_unlock_irqrestore(&lane->lock, flags);
	if (signal)
		vql_bell_ring(&vql_lane_queue(lane)->bell);
}

static void lane_serve_work(struct work_struct *work)
{
	serve_in_worker(container_of(work, struct vql_lane, serve_work));
}

static void lane_patient_work(struct work_struct *work)
{
	serve_in_worker(container_of(work, struct vql_lane, patient_work));
}

void vql_lane_cancel_works(struct vql_lane *lane)
{
	cancel_work_sync(&lane->serve_work);
	cancel_work_sync(&lane->patient_work);
}

/*
 * Those of @end that are of the first one's lane; their lane becomes NULL. Until the lock is taken there is
 * a request under way, which keeps the lane from going OFF; and going OFF waits for this handler or worker
 * (vql_kq_synchronize()).
 */
static void end_parts_of_lane(struct vql_lane_end *end, u32 n)
{
	struct vql_lane *lane = end->lane;
	unsigned long flags;
	bool signal;
	u32 i;

	spin_lock_irqsave(&lane->lock, flags);
	for (i = 0; i < n; i++) {
		if (end[i].lane != lane)
			continue;
		end_part(lane, &end[i]);
		end[i].lane = NULL;
	}
	signal = settle(lane);
	tell_if_done(lane);
	spin_unlock_irqrestore(&lane->lock, flags);
	if (signal)
		vql_bell_ring(&vql_lane_queue(lane)->bell);
}

void vql_lane_ended(struct vql_lane_end *end, u32 n)
{
	u32 i;

	for (i = 0; i < n; i++)
		if (end[i].lane)
			end_parts_of_lane(&end[i], n - i);
}

void vql_lane_setup(struct vql_lane *lane, struct vql_disk *disk, u32 index)
{
	lane->disk = disk;
	lane->index = index;
	spin_lock_init(&lane->lock);
	INIT_LIST_HEAD(&lane->waiting);
	init_irq_work(&lane->signal, lane_signal);
	INIT_WORK(&lane->serve_work, lane_serve_work);
	INIT_WORK(&lane->patient_work, lane_patient_work);
	if (!index) {
		INIT_WORK(&disk->lane_work, vql_lane_work);
		INIT_DELAYED_WORK(&disk->lane_retry, vql_lanes_retry);
	}
}

int vql_lane_init(void)
{
	lane_wq = alloc_workqueue("vqlane_lane", WQ_UNBOUND | WQ_HIGHPRI, 0);
	patient_wq = alloc_workqueue("vqlane_patient", WQ_UNBOUND, 0);
	if (lane_wq && patient_wq)
		return 0;
	vql_lane_exit();
	return -ENOMEM;
}

/* Disks hold the module, so there is none; but a work may be at its end. */
void vql_lane_exit(void)
{
	if (patient_wq)
		destroy_workqueue(patient_wq);
	if (lane_wq)
		destroy_workqueue(lane_wq);
}
