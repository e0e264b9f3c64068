// SPDX-License-Identifier: GPL-2.0-only
/*
 * A controller from disabled to live and back (NVMe 2.0 §3.5 and §3.6), and its events.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/iommu.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "nvme/ctrl.h"

enum {
	VQL_DELAY_MS = 2300,     /* of VQL_QUIRK_DELAY, as the kernel's nvme driver has it */
	VQL_AEN_CRITICAL = 0x1f, /* SMART: all critical warnings */
	/*
	 * A controller may say that it takes two minutes to be disabled. While a VMM waits for that, it has no more than
	 * this, and is then cut off: with a drain (10 s) and a command (DELETE_S) before it, the VMM's other threads wait
	 * for some 70 s, and the kernel calls them hung after 120.
	 */
	HURRIED_S = 45,
};

/* ---- memory ---- */

int vql_coherent_alloc(struct device *dev, struct vql_coherent *mem, size_t bytes)
{
	int err;

	mem->bytes = PAGE_ALIGN(bytes);
	mem->cpu = dma_alloc_coherent(dev, mem->bytes, &mem->dma, GFP_KERNEL | __GFP_NOWARN);
	if (!mem->cpu)
		return -ENOMEM;
	/*
	 * dma_mmap_coherent() would insert the pages before the VMA can be found by a zap. A fault
	 * handler that inserts them under a lock has no such gap, and needs to know them.
	 */
	err = dma_get_sgtable(dev, &mem->pages, mem->cpu, mem->dma, mem->bytes);
	if (err) {
		dma_free_coherent(dev, mem->bytes, mem->cpu, mem->dma);
		mem->cpu = NULL;
	}
	return err;
}

void vql_coherent_free(struct device *dev, struct vql_coherent *mem)
{
	if (!mem->cpu)
		return;
	sg_free_table(&mem->pages);
	dma_free_coherent(dev, mem->bytes, mem->cpu, mem->dma);
	mem->cpu = NULL;
}

/* ---- state ---- */

void vql_ctrl_get(struct vql_ctrl *ctrl) { kref_get(&ctrl->ref); }

static void ctrl_free(struct kref *ref) { kfree(container_of(ref, struct vql_ctrl, ref)); }

void vql_ctrl_put(struct vql_ctrl *ctrl) { kref_put(&ctrl->ref, ctrl_free); }

const char *vql_ctrl_name(const struct vql_ctrl *ctrl) { return ctrl->name; }

struct device *vql_ctrl_dma_dev(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&vql_attach_lock);
	return ctrl->dma_dev;
}

static void ctrl_set_state(struct vql_ctrl *ctrl, enum vql_ctrl_state state)
{
	lockdep_assert_held(&ctrl->lock);
	ctrl->turn++;
	spin_lock(&ctrl->info_lock);
	/* Once: ctrl_seems_usable() looks at it without a lock. */
	WRITE_ONCE(ctrl->info.state, state);
	/* Pairs with vql_ctrl_wait_restarted(): who sees that the restart is over sees how. */
	smp_store_release(&ctrl->restarts, false);
	ctrl->news++;
	spin_unlock(&ctrl->info_lock);
	wake_up_all(&ctrl->wait);
}

/* As vql_ctrl_usable(); without the lock, so that it may be otherwise a moment later. */
static int ctrl_seems_usable(struct vql_ctrl *ctrl)
{
	switch (READ_ONCE(ctrl->info.state)) {
	case VQL_CTRL_LIVE: return 0;
	case VQL_CTRL_RESETTING: return -EAGAIN;
	default: return -ENODEV;
	}
}

int vql_ctrl_usable(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&ctrl->lock);
	return ctrl_seems_usable(ctrl);
}

void vql_ctrl_set_free(struct vql_ctrl *ctrl)
{
	u32 used = bitmap_weight(ctrl->qids, VQL_MAX_CTRL_QPAIRS + 1), own = 0;
	struct vql_qpair *qp;

	lockdep_assert_held(&ctrl->lock);
	list_for_each_entry(qp, &ctrl->qpairs, list) own +=
		vql_qpair_is_own(qp) && vql_qpair_is_live(qp);
	spin_lock(&ctrl->info_lock);
	ctrl->info.free_qpairs = ctrl->info.max_qpairs - min(used, ctrl->info.max_qpairs);
	ctrl->info.own_qpairs = own;
	spin_unlock(&ctrl->info_lock);
}

void vql_ctrl_set_offline(struct vql_ctrl *ctrl)
{
	WRITE_ONCE(ctrl->offline, true);
	wake_up_all(&ctrl->admin.wait);
}

bool vql_ctrl_absent(struct vql_ctrl *ctrl)
{
	/*
	 * What nobody answers for reads as all ones, in config space always, behind a BAR on most
	 * machines.
	 */
	return READ_ONCE(ctrl->offline) || readl(ctrl->bar + NVME_REG_CSTS) == U32_MAX ||
	       !pci_device_is_present(ctrl->pdev);
}

/* No DMA from now on, even by a controller that would not be disabled. */
static void ctrl_cut_off(struct vql_ctrl *ctrl)
{
	u16 command;

	pci_clear_master(ctrl->pdev);
	/* The answer to a read comes after the writes that the device has sent before. */
	pci_read_config_word(ctrl->pdev, PCI_COMMAND, &command);
}

static void ctrl_set_dead(struct vql_ctrl *ctrl)
{
	ctrl_cut_off(ctrl);
	ctrl_set_state(ctrl, VQL_CTRL_DEAD);
	vql_qpairs_end(ctrl, VQL_QPAIR_GONE);
}

/* ---- registers ---- */

/* 0 when it is so, -EAGAIN when it is not yet. */
static int ctrl_look(struct vql_ctrl *ctrl, u32 mask, u32 want)
{
	u32 csts;

	if (vql_ctrl_absent(ctrl))
		return -ENODEV;
	csts = readl(ctrl->bar + NVME_REG_CSTS);
	if ((csts & mask) == want)
		return 0;
	return want == NVME_CSTS_RDY && csts & NVME_CSTS_CFS ? -EIO : -EAGAIN;
}

static int ctrl_wait(struct vql_ctrl *ctrl, u32 mask, u32 want, unsigned int ms, bool may_hurry)
{
	unsigned long begin = jiffies;
	bool late;
	int err;

	do {
		/* Before looking: we may have slept long. */
		late = time_after(jiffies, begin + msecs_to_jiffies(ms)) ||
		       (may_hurry && atomic_read(&ctrl->hurried) &&
			time_after(jiffies, begin + HURRIED_S * HZ));
		err = ctrl_look(ctrl, mask, want);
		if (err != -EAGAIN)
			return err;
		usleep_range(1000, 2000);
	} while (!late);
	return -ETIMEDOUT;
}

/* Without the lock while it waits, up to two minutes for some controllers. */
static int ctrl_wait_ready(struct vql_ctrl *ctrl)
{
	unsigned long end = jiffies + msecs_to_jiffies(ctrl->ready_ms);
	u32 turn = ctrl->turn;
	bool late;
	int err;

	do {
		late = time_after(jiffies, end);
		err = ctrl_look(ctrl, NVME_CSTS_RDY, NVME_CSTS_RDY);
		if (err != -EAGAIN)
			return err;
		mutex_unlock(&ctrl->lock);
		usleep_range(1000, 2000);
		mutex_lock(&ctrl->lock);
		if (ctrl->turn != turn)
			return -ECANCELED;
	} while (!late);
	return -ETIMEDOUT;
}

static int ctrl_disable(struct vql_ctrl *ctrl)
{
	u32 cc;

	if (vql_ctrl_absent(ctrl))
		return -ENODEV;
	cc = readl(ctrl->bar + NVME_REG_CC) & ~(u32)(NVME_CC_ENABLE | NVME_CC_SHN_MASK);
	writel(cc, ctrl->bar + NVME_REG_CC);
	if (ctrl->quirks & VQL_QUIRK_DELAY)
		msleep(VQL_DELAY_MS);
	return ctrl_wait(ctrl, NVME_CSTS_RDY, 0, ctrl->ready_ms, true);
}

static int ctrl_enable(struct vql_ctrl *ctrl)
{
	u32 cc = NVME_CC_CSS_NVM | NVME_CC_AMS_RR | NVME_CC_IOSQES | NVME_CC_IOCQES;

	vql_admin_begin(ctrl);
	/* What the fields are is to be known before the controller is enabled. MPS 0: 4096 bytes. */
	writel(cc, ctrl->bar + NVME_REG_CC);
	writel(cc | NVME_CC_ENABLE, ctrl->bar + NVME_REG_CC);
	return ctrl_wait_ready(ctrl);
}

/* Entries of a queue. MQES counts from 0, and 0 is not allowed (NVMe 2.0 §3.1.3.1). */
static u32 ctrl_max_depth(struct vql_ctrl *ctrl, u32 mqes)
{
	if (ctrl->quirks & VQL_QUIRK_DEPTH2)
		return 2;
	if (!mqes && ctrl->quirks & VQL_QUIRK_DEPTH64)
		return 64;
	return min(mqes + 1, VQL_MAX_QPAIR_DEPTH);
}

/* What this controller can, of what never changes; or why it cannot be used. */
static int ctrl_read_capabilities(struct vql_ctrl *ctrl)
{
	u64 cap = lo_hi_readq(ctrl->bar + NVME_REG_CAP);
	u32 ready = NVME_CAP_TIMEOUT(cap);

	if (cap == U64_MAX)
		return -ENODEV;
	if (cap & (NVME_CAP_CRMS_CRWMS | NVME_CAP_CRMS_CRIMS))
		ready = max(ready, readl(ctrl->bar + NVME_REG_CRTO) & 0xffff);
	ctrl->ready_ms = max(ready, 1u) * 500;
	ctrl->stride = 4u << NVME_CAP_STRIDE(cap);
	if (!(NVME_CAP_CSS(cap) & NVME_CAP_CSS_NVM)) {
		vql_ctrl_warn(ctrl, "refused: it does not serve the NVM command set (CAP.CSS)\n");
		return -EOPNOTSUPP;
	}
	if (NVME_CAP_MPSMIN(cap)) {
		vql_ctrl_warn(ctrl,
			      "refused: it cannot do with pages of 4096 bytes (CAP.MPSMIN)\n");
		return -EOPNOTSUPP;
	}
	if (ctrl->stride > VQL_MAX_STRIDE) {
		vql_ctrl_warn(ctrl, "refused: its doorbells are %u bytes apart (CAP.DSTRD)\n",
			      ctrl->stride);
		return -EOPNOTSUPP;
	}
	ctrl->info.max_depth = ctrl_max_depth(ctrl, (u32)NVME_CAP_MQES(cap));
	if (ctrl->info.max_depth < 2) {
		vql_ctrl_warn(
			ctrl,
			"refused: its queues have one entry (CAP.MQES is 0), which is none\n");
		return -EOPNOTSUPP;
	}
	return 0;
}

/* ---- bring-up ---- */

static int ctrl_set_features(struct vql_ctrl *ctrl, u32 optional_events, struct vql_ctrl_info *info)
{
	u32 want = VQL_MAX_CTRL_QPAIRS - 1, got = 0, in_bar;
	int err;

	err = vql_admin_set_feature(ctrl, NVME_FEAT_NUM_QUEUES, want << 16 | want, &got);
	if (err) {
		vql_ctrl_warn(ctrl, "it grants no I/O queues (Set Features: %d)\n", err);
		return err;
	}
	in_bar = (u32)min_t(u64,
			    (pci_resource_len(ctrl->pdev, 0) - NVME_REG_DBS) / (2 * ctrl->stride),
			    U32_MAX) -
		 1;
	info->max_qpairs = min3(min(got & 0xffff, got >> 16) + 1, in_bar, (u32)VQL_MAX_CTRL_QPAIRS);

	/* The cache is flushed when a guest asks for it, whether or not it is on: no reason to fail. */
	if (info->volatile_cache) {
		err = vql_admin_set_feature(ctrl, NVME_FEAT_VOLATILE_WC, 1, NULL);
		if (err < 0)
			return err;
		if (err)
			vql_ctrl_warn(ctrl, "write cache left as it is (NVMe status 0x%x)\n", err);
	}
	err = vql_admin_set_feature(ctrl, NVME_FEAT_ASYNC_EVENT,
				    VQL_AEN_CRITICAL | (optional_events & NVME_AEN_CFG_NS_ATTR),
				    NULL);
	if (err > 0)
		vql_ctrl_warn(ctrl, "no events will be told (NVMe status 0x%x)\n", err);
	return min(err, 0);
}

/* How long to wait before a command that has failed for now is tried again, it may say with each. */
static int ctrl_set_behavior(struct vql_ctrl *ctrl, struct vql_ctrl_info *info)
{
	int err = info->crdt[0] ? vql_admin_set_behavior(ctrl) : 0;

	if (err > 0)
		vql_ctrl_note(ctrl, "tells no retry delays (NVMe status 0x%x)\n", err);
	if (err || !info->crdt[0])
		memset(info->crdt, 0, sizeof(info->crdt));
	return min(err, 0);
}

/* Shadow doorbells, where the controller has them and those of all queues fit a page. */
static int ctrl_set_shadow(struct vql_ctrl *ctrl, struct vql_ctrl_info *info)
{
	struct device *dev = &ctrl->pdev->dev;
	int err = 0;

	if ((info->max_qpairs + 1) * 2 * ctrl->stride > PAGE_SIZE)
		return 0;
	if (!ctrl->shadow.cpu)
		err = vql_coherent_alloc(dev, &ctrl->shadow, PAGE_SIZE);
	if (!err && !ctrl->event_index.cpu)
		err = vql_coherent_alloc(dev, &ctrl->event_index, PAGE_SIZE);
	if (err)
		return err;
	memset(ctrl->shadow.cpu, 0, PAGE_SIZE);
	memset(ctrl->event_index.cpu, 0, PAGE_SIZE);
	err = vql_admin_set_shadow(ctrl);
	if (err > 0)
		vql_ctrl_warn(ctrl, "no shadow doorbells (NVMe status 0x%x)\n", err);
	if (!err)
		info->flags |= VQL_CTRL_SHADOW;
	return min(err, 0);
}

/*
 * IOMMU_DOMAIN_DMA alone: with a flush queue (DMA-FQ) a translation outlives its unmapping by some 10 ms, in which the
 * drive reaches pages that are somebody else's by then. dma_free_coherent() has no way to wait for that.
 */
static bool ctrl_is_translated(struct vql_ctrl *ctrl)
{
	struct iommu_domain *domain = iommu_get_domain_for_dev(&ctrl->pdev->dev);

	return domain && domain->type == IOMMU_DOMAIN_DMA;
}

static int ctrl_bring_up(struct vql_ctrl *ctrl)
{
	const struct nvme_id_ctrl *id = ctrl->admin.data.cpu;
	struct vql_ctrl_info info = {};
	bool has_shadow;
	u32 events;
	int err;

	err = ctrl_disable(ctrl); /* firmware may have used it */
	if (!err)
		err = ctrl_enable(ctrl);
	if (!err)
		err = vql_admin_identify(ctrl, NVME_ID_CNS_CTRL, 0);
	if (err)
		return err;
	vql_ctrl_read_identity(ctrl, id, &info);
	has_shadow = le16_to_cpu(id->oacs) & NVME_CTRL_OACS_DBBUF_SUPP &&
		     !(ctrl->quirks & VQL_QUIRK_NO_SHADOW);
	events = le32_to_cpu(id->oaes);

	err = ctrl_set_features(ctrl, events, &info);
	if (!err)
		err = ctrl_set_behavior(ctrl, &info);
	if (!err && has_shadow)
		err = ctrl_set_shadow(ctrl, &info);
	if (!err)
		err = vql_ctrl_read_limits(ctrl, &info);
	if (!err)
		err = vql_ctrl_count_namespaces(ctrl, &info.namespaces);
	if (err)
		return err;
	if (ctrl_is_translated(ctrl))
		info.flags |= VQL_CTRL_TRANSLATED;

	spin_lock(&ctrl->info_lock);
	info.state = ctrl->info.state;
	info.max_depth = ctrl->info.max_depth;
	info.events = ctrl->info.events;
	info.critical_warning = ctrl->info.critical_warning;
	strscpy(info.bdf, ctrl->name, sizeof(info.bdf));
	ctrl->info = info;
	spin_unlock(&ctrl->info_lock);
	vql_ctrl_set_free(ctrl);
	return 0;
}

int vql_ctrl_start(struct vql_ctrl *ctrl)
{
	int err;

	lockdep_assert_held(&ctrl->lock);
	err = ctrl->stride ? 0 : ctrl_read_capabilities(ctrl);
	if (!err)
		err = ctrl_bring_up(ctrl);
	if (err == -ECANCELED)
		return err;
	if (err) {
		vql_ctrl_warn(ctrl, "cannot be brought up (%s%d)\n",
			      err > 0 ? "NVMe status " : "error ", err);
		if (READ_ONCE(ctrl->offline)) {
			vql_ctrl_freeze(ctrl); /* not dead, as in vql_ctrl_reset() */
		} else {
			ctrl_disable(ctrl);
			ctrl_set_dead(ctrl);
		}
		return err > 0 ? -EIO : err;
	}
	ctrl_set_state(ctrl, VQL_CTRL_LIVE);
	vql_admin_await_event(ctrl);
	return 0;
}

void vql_ctrl_stop(struct vql_ctrl *ctrl)
{
	int err;

	lockdep_assert_held(&ctrl->lock);
	if (ctrl->info.state == VQL_CTRL_DEAD)
		return;
	ctrl_set_state(ctrl, VQL_CTRL_RESETTING);
	err = ctrl_disable(ctrl);
	if (err) {
		vql_ctrl_warn(ctrl, "%s: given up, its queue pairs are gone\n",
			      err == -ENODEV ? "not there any more" : "does not obey");
		ctrl_set_dead(ctrl);
	} else {
		vql_qpairs_end(ctrl, VQL_QPAIR_LOST);
	}
}

void vql_ctrl_freeze(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&ctrl->lock);
	if (ctrl->info.state == VQL_CTRL_DEAD)
		return;
	ctrl_set_state(ctrl, VQL_CTRL_RESETTING);
	ctrl_cut_off(ctrl);
	vql_qpairs_end(ctrl, VQL_QPAIR_LOST);
}

void vql_ctrl_quiesce(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&ctrl->lock);
	if (ctrl->info.state == VQL_CTRL_DEAD)
		return;
	/* So that a command that goes wrong now resets nothing: the controller is disabled anyway. */
	ctrl_set_state(ctrl, VQL_CTRL_RESETTING);
	if (!vql_ctrl_absent(ctrl))
		vql_qpairs_delete(ctrl);
}

int vql_ctrl_reset(struct vql_ctrl *ctrl)
{
	/*
	 * It was not there for the command that wants this. Whether that is for good the PCI core
	 * knows, and who told of it and waits for our lock: that ends in vql_ctrl_start() or _stop().
	 */
	if (READ_ONCE(ctrl->offline)) {
		vql_ctrl_freeze(ctrl);
		return -ENODEV;
	}
	vql_ctrl_note(ctrl, "reset\n");
	vql_ctrl_stop(ctrl);
	if (ctrl->info.state == VQL_CTRL_DEAD)
		return -ENODEV;
	WRITE_ONCE(ctrl->restarts, true);
	queue_work(system_long_wq, &ctrl->restart_work);
	return 0;
}

static void ctrl_restart_work(struct work_struct *work)
{
	struct vql_ctrl *ctrl = container_of(work, struct vql_ctrl, restart_work);

	mutex_lock(&ctrl->lock);
	if (ctrl->restarts) /* nobody has stopped it since */
		vql_ctrl_start(ctrl);
	mutex_unlock(&ctrl->lock);
}

void vql_ctrl_lock_started(struct vql_ctrl *ctrl)
{
	mutex_lock(&ctrl->lock);
	while (ctrl->restarts) {
		mutex_unlock(&ctrl->lock);
		/* After it, this restart is over, however it went. */
		flush_work(&ctrl->restart_work);
		mutex_lock(&ctrl->lock);
	}
}

int vql_ctrl_wait_restarted(struct vql_ctrl *ctrl)
{
	return wait_event_killable(ctrl->wait, !smp_load_acquire(&ctrl->restarts))
		       ?: ctrl_seems_usable(ctrl);
}

int vql_ctrl_lock_live(struct vql_ctrl *ctrl)
{
	int err;

	while (!(err = ctrl_seems_usable(ctrl))) {
		if (mutex_trylock(&ctrl->lock)) {
			if (!vql_ctrl_usable(ctrl))
				return 0;
			mutex_unlock(&ctrl->lock); /* it was LIVE a moment ago */
			continue;
		}
		if (fatal_signal_pending(current))
			return -EINTR;
		usleep_range(1000, 2000);
	}
	return err;
}

int vql_ctrl_lock_hurried(struct vql_ctrl *ctrl)
{
	int err = ctrl_seems_usable(ctrl);

	if (err) /* nobody is to be hurried for nothing */
		return err;
	atomic_inc(&ctrl->hurried);
	err = vql_ctrl_lock_live(ctrl);
	if (err)
		atomic_dec(&ctrl->hurried);
	return err;
}

void vql_ctrl_unlock_hurried(struct vql_ctrl *ctrl)
{
	mutex_unlock(&ctrl->lock);
	atomic_dec(&ctrl->hurried);
}

/* From LIVE or RESETTING: when it returns the controller does no DMA, and no queue pair is live. */
static void ctrl_shut_down(struct vql_ctrl *ctrl)
{
	u32 cc;

	vql_ctrl_quiesce(ctrl);
	if (!vql_ctrl_absent(ctrl)) {
		cc = readl(ctrl->bar + NVME_REG_CC) & ~(u32)NVME_CC_SHN_MASK;
		writel(cc | NVME_CC_SHN_NORMAL, ctrl->bar + NVME_REG_CC);
		/* In no hurry: what it has in its cache would be lost. */
		if (ctrl_wait(ctrl, NVME_CSTS_SHST_MASK, NVME_CSTS_SHST_CMPLT, ctrl->shutdown_ms,
			      false))
			vql_ctrl_warn(ctrl, "shutdown did not complete: its cache may be lost\n");
	}
	ctrl_cut_off(ctrl);
}

void vql_ctrl_shutdown(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&ctrl->lock);
	if (ctrl->info.state == VQL_CTRL_DEAD)
		return;
	if (!ctrl->suspended)
		ctrl_shut_down(ctrl);
	ctrl_set_dead(ctrl);
}

/* ---- the host sleeps ---- */

void vql_ctrl_suspend(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&ctrl->lock);
	if (vql_ctrl_usable(ctrl))
		return;
	ctrl->suspended = true;
	spin_lock(&ctrl->info_lock);
	ctrl->info.flags |= VQL_CTRL_SUSPENDED;
	spin_unlock(&ctrl->info_lock);
	ctrl_shut_down(ctrl);
	vql_qpairs_end(ctrl, VQL_QPAIR_LOST);
	vql_ctrl_note(ctrl, "suspended: all queue pairs are lost\n");
}

void vql_ctrl_resume(struct vql_ctrl *ctrl)
{
	lockdep_assert_held(&ctrl->lock);
	if (!ctrl->suspended)
		return;
	ctrl->suspended = false;
	pci_set_master(ctrl->pdev);
	if (!vql_ctrl_start(ctrl))
		vql_ctrl_note(ctrl, "resumed\n");
}

/* ---- events ---- */

static void ctrl_count_event(struct vql_ctrl *ctrl)
{
	spin_lock(&ctrl->info_lock);
	ctrl->info.events++;
	ctrl->news++;
	spin_unlock(&ctrl->info_lock);
	wake_up_all(&ctrl->wait);
}

/*
 * Reading the log page that an event names makes the controller tell the next of its kind
 * (NVMe 2.0 §5.2). Fails only if the controller was reset.
 */
static int ctrl_handle_event(struct vql_ctrl *ctrl, u32 event)
{
	u8 type = event & 7, info = event >> 8 & 0xff, page = event >> 16 & 0xff;
	u32 bytes = page == NVME_LOG_CHANGED_NS ? VQL_ADMIN_DATA_BYTES : 512;
	u32 namespaces;
	u8 warning;
	int err;

	err = vql_admin_log(ctrl, page, NVME_NSID_ALL, page == NVME_LOG_ERROR ? 64 : bytes, false);
	if (err < 0)
		return err;
	if (type == NVME_AER_SMART && page == NVME_LOG_SMART && !err) {
		warning = *(u8 *)ctrl->admin.data.cpu;
		vql_ctrl_warn(ctrl, "SMART critical warning 0x%02x: replace or cool the drive\n",
			      warning);
		spin_lock(&ctrl->info_lock);
		ctrl->info.critical_warning = warning;
		spin_unlock(&ctrl->info_lock);
	} else if (type == NVME_AER_NOTICE && info == NVME_AER_NOTICE_NS_CHANGED) {
		err = vql_ctrl_count_namespaces(ctrl, &namespaces);
		if (err < 0)
			return err;
		spin_lock(&ctrl->info_lock);
		ctrl->info.namespaces = namespaces;
		spin_unlock(&ctrl->info_lock);
		vql_ctrl_note(ctrl, "namespaces have changed: %u now\n", namespaces);
	} else {
		/* A daemon that rings a doorbell of no queue causes these, as often as it likes. */
		pr_info_ratelimited("%s: event of type %u, information 0x%02x\n", ctrl->name, type,
				    info);
	}
	return 0;
}

static void ctrl_event_work(struct work_struct *work)
{
	struct vql_ctrl *ctrl = container_of(work, struct vql_ctrl, event_work);
	u32 event;

	mutex_lock(&ctrl->lock);
	/* A reset in between has dropped the event, and asked for the next itself. */
	if (!vql_ctrl_usable(ctrl) && vql_admin_take_event(ctrl, &event) &&
	    !ctrl_handle_event(ctrl, event)) {
		vql_admin_await_event(ctrl);
		ctrl_count_event(ctrl);
	}
	mutex_unlock(&ctrl->lock);
}

struct vql_ctrl *vql_ctrl_alloc(struct pci_dev *pdev)
{
	struct vql_ctrl *ctrl = kzalloc(sizeof(*ctrl), GFP_KERNEL);

	if (!ctrl)
		return NULL;
	kref_init(&ctrl->ref);
	strscpy(ctrl->name, pci_name(pdev), sizeof(ctrl->name));
	snprintf(ctrl->misc_name, sizeof(ctrl->misc_name), "vqlane-nvme-%s", ctrl->name);
	ctrl->info.state = VQL_CTRL_RESETTING;
	ctrl->pdev = pdev;
	vql_ctrl_find_quirks(ctrl);
	ctrl->dma_dev = &pdev->dev;
	mutex_init(&ctrl->lock);
	INIT_LIST_HEAD(&ctrl->qpairs);
	spin_lock_init(&ctrl->admin.lock);
	init_waitqueue_head(&ctrl->admin.wait);
	spin_lock_init(&ctrl->info_lock);
	init_waitqueue_head(&ctrl->wait);
	INIT_WORK(&ctrl->event_work, ctrl_event_work);
	INIT_WORK(&ctrl->restart_work, ctrl_restart_work);
	return ctrl;
}
