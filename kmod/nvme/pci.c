// SPDX-License-Identifier: GPL-2.0-only
/*
 * The PCI driver. It has no table of devices: it takes what an operator gives it by driver_override,
 * and never a drive by itself.
 *
 * Probe, remove, shutdown and the error handlers of a device are called one at a time (under its
 * device lock); ioctls, closing files and fences may run beside them, and are held off by
 * ctrl->lock and by its state.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/interrupt.h>
#include <linux/module.h>

#include "nvme/ctrl.h"

enum {
	VQL_BAR_BYTES = 8192, /* at least: registers, and the admin queue's doorbells */
	/* At most: all doorbells, at the widest stride that there may be (DSTRD, ctrl.c). */
	VQL_BAR_USED = NVME_REG_DBS + (VQL_MAX_CTRL_QPAIRS + 1) * 2 * VQL_MAX_STRIDE,
};

static int pci_map(struct vql_ctrl *ctrl)
{
	struct pci_dev *pdev = ctrl->pdev;
	int err;

	err = pci_enable_device_mem(pdev);
	if (err)
		return err;
	err = pci_request_mem_regions(pdev, KBUILD_MODNAME);
	if (err)
		goto err_disable;
	err = -ENODEV;
	if (pci_resource_len(pdev, 0) < VQL_BAR_BYTES)
		goto err_regions;
	err = -ENOMEM;
	/* No queue pair's doorbells are beyond the end of it: max_qpairs. */
	ctrl->bar = ioremap(pci_resource_start(pdev, 0),
			    min_t(resource_size_t, pci_resource_len(pdev, 0), VQL_BAR_USED));
	if (!ctrl->bar)
		goto err_regions;
	return 0;

err_regions:
	pci_release_mem_regions(pdev);
err_disable:
	pci_disable_device(pdev);
	return err;
}

static void pci_unmap(struct vql_ctrl *ctrl)
{
	iounmap(ctrl->bar);
	pci_release_mem_regions(ctrl->pdev);
	pci_disable_device(ctrl->pdev);
}

static int pci_vectors(struct vql_ctrl *ctrl)
{
	struct pci_dev *pdev = ctrl->pdev;
	int n, err;

	n = pci_alloc_irq_vectors(pdev, 1, 1 + VQL_MAX_CTRL_QPAIRS, PCI_IRQ_MSIX);
	if (n < 0) {
		vql_ctrl_warn(ctrl, "refused: no MSI-X interrupt to be had (error %d)\n", n);
		return n;
	}
	ctrl->vectors = (unsigned int)n;
	err = request_irq((unsigned int)pci_irq_vector(pdev, 0), vql_admin_irq, 0, ctrl->misc_name,
			  ctrl);
	if (err)
		pci_free_irq_vectors(pdev);
	return err;
}

/* The other end of probe, from where the controller is DEAD: nothing of the hardware is used after. */
static void pci_let_go(struct vql_ctrl *ctrl)
{
	struct device *dev = &ctrl->pdev->dev;

	/* Without the admin queue's interrupt and with a dead controller nobody queues the work. */
	free_irq((unsigned int)pci_irq_vector(ctrl->pdev, 0), ctrl);
	cancel_work_sync(&ctrl->event_work);
	cancel_work_sync(&ctrl->restart_work);

	/* All guest memory is unmapped from the device; no queue pair is live, so none is mapped anew. */
	vql_attach_drop_ctrl(ctrl);
	mutex_lock(&vql_attach_lock);
	ctrl->dma_dev = NULL;
	mutex_unlock(&vql_attach_lock);

	mutex_lock(&ctrl->lock);
	vql_qpairs_free(ctrl);
	vql_coherent_free(dev, &ctrl->event_index);
	vql_coherent_free(dev, &ctrl->shadow);
	vql_admin_free(ctrl);
	mutex_unlock(&ctrl->lock);

	pci_free_irq_vectors(ctrl->pdev);
	pci_unmap(ctrl);
	vql_ctrl_put(ctrl);
}

static void pci_shut_down(struct vql_ctrl *ctrl)
{
	/* Before the lock: somebody may wait under it for an answer that will not come. */
	if (!pci_device_is_present(ctrl->pdev))
		vql_ctrl_set_offline(ctrl);
	vql_ctrl_lock_started(ctrl);
	vql_ctrl_shutdown(ctrl);
	mutex_unlock(&ctrl->lock);
}

static int vql_pci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vql_ctrl *ctrl;
	int err;

	if (pdev->class != PCI_CLASS_STORAGE_EXPRESS) {
		pci_warn(pdev, "vqlane: not an NVMe controller (class %06x)\n", pdev->class);
		return -ENODEV;
	}
	ctrl = vql_ctrl_alloc(pdev);
	if (!ctrl)
		return -ENOMEM;
	err = dma_set_mask_and_coherent(&pdev->dev,
					DMA_BIT_MASK(ctrl->quirks & VQL_QUIRK_DMA48 ? 48 : 64));
	if (!err)
		err = pci_map(ctrl);
	if (err)
		goto err_put;
	err = vql_admin_alloc(ctrl);
	if (err)
		goto err_unmap;
	err = pci_vectors(ctrl);
	if (err)
		goto err_admin;
	pci_set_master(pdev);
	mutex_lock(&ctrl->lock);
	err = vql_ctrl_start(ctrl);
	mutex_unlock(&ctrl->lock);
	if (!err)
		err = vql_ctrl_publish(ctrl);
	if (err) {
		pci_shut_down(ctrl);
		pci_let_go(ctrl);
		return err;
	}
	pci_set_drvdata(pdev, ctrl);
	pci_save_state(pdev);
	vql_ctrl_note(ctrl, "%.*s, %u queue pairs of %u, %u namespaces, DMA %s\n", VQL_MODEL_BYTES,
		      ctrl->info.model, ctrl->info.max_qpairs, ctrl->info.max_depth,
		      ctrl->info.namespaces,
		      ctrl->info.flags & VQL_CTRL_TRANSLATED ? "translated" : "not translated");
	return 0;

err_admin:
	vql_admin_free(ctrl);
err_unmap:
	pci_unmap(ctrl);
err_put:
	vql_ctrl_put(ctrl);
	return err;
}

static void vql_pci_remove(struct pci_dev *pdev)
{
	struct vql_ctrl *ctrl = pci_get_drvdata(pdev);

	vql_ctrl_unpublish(ctrl);
	pci_shut_down(ctrl);
	vql_ctrl_note(ctrl, "unbound\n");
	pci_let_go(ctrl);
}

/* The machine goes down. Nothing is freed: files may be open, and nobody will close them. */
static void vql_pci_shutdown(struct pci_dev *pdev) { pci_shut_down(pci_get_drvdata(pdev)); }

/* ---- the host sleeps: suspend, and the steps of hibernation, are the same to a drive ---- */

static int vql_pci_suspend(struct device *dev)
{
	struct vql_ctrl *ctrl = pci_get_drvdata(to_pci_dev(dev));

	/* All processes stand still. Theirs is a lost queue pair when they go on, as after a reset. */
	vql_ctrl_lock_started(ctrl);
	vql_ctrl_suspend(ctrl);
	mutex_unlock(&ctrl->lock);
	return 0;
}

static int vql_pci_resume(struct device *dev)
{
	struct pci_dev *pdev = to_pci_dev(dev);
	struct vql_ctrl *ctrl = pci_get_drvdata(pdev);

	mutex_lock(&ctrl->lock);
	vql_ctrl_resume(ctrl);
	mutex_unlock(&ctrl->lock);
	pci_save_state(pdev); /* what probe saved for the error handlers is used up */
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(vql_pci_pm, vql_pci_suspend, vql_pci_resume);

/* ---- error recovery (Documentation/PCI/pci-error-recovery.rst) and function level reset ---- */

static pci_ers_result_t vql_pci_error_detected(struct pci_dev *pdev, pci_channel_state_t state)
{
	struct vql_ctrl *ctrl = pci_get_drvdata(pdev);

	if (state == pci_channel_io_normal)
		return PCI_ERS_RESULT_CAN_RECOVER;
	vql_ctrl_set_offline(ctrl);
	mutex_lock(&ctrl->lock);
	if (state == pci_channel_io_perm_failure)
		vql_ctrl_stop(ctrl);
	else
		vql_ctrl_freeze(ctrl);
	mutex_unlock(&ctrl->lock);
	if (state == pci_channel_io_perm_failure)
		return PCI_ERS_RESULT_DISCONNECT;
	vql_ctrl_warn(ctrl, "PCI channel frozen: all queue pairs are lost\n");
	return PCI_ERS_RESULT_NEED_RESET;
}

static pci_ers_result_t vql_pci_slot_reset(struct pci_dev *pdev)
{
	pci_restore_state(pdev); /* as probe saved it: memory and bus mastering on */
	pci_save_state(pdev);    /* what was restored is used up */
	return PCI_ERS_RESULT_RECOVERED;
}

static void vql_pci_restart(struct pci_dev *pdev)
{
	struct vql_ctrl *ctrl = pci_get_drvdata(pdev);

	mutex_lock(&ctrl->lock);
	/* One that was reset without the PCI core starts by itself. */
	if (vql_ctrl_usable(ctrl) == -EAGAIN && !ctrl->suspended && !ctrl->restarts) {
		WRITE_ONCE(ctrl->offline, false);
		pci_set_master(pdev);
		vql_ctrl_start(ctrl);
	}
	mutex_unlock(&ctrl->lock);
}

static void vql_pci_reset_prepare(struct pci_dev *pdev)
{
	struct vql_ctrl *ctrl = pci_get_drvdata(pdev);

	mutex_lock(&ctrl->lock);
	if (!vql_ctrl_usable(ctrl))
		vql_ctrl_quiesce(ctrl);
	vql_ctrl_stop(ctrl);
	mutex_unlock(&ctrl->lock);
}

static const struct pci_error_handlers vql_pci_errors = {
	.error_detected = vql_pci_error_detected,
	.slot_reset = vql_pci_slot_reset,
	.resume = vql_pci_restart,
	.reset_prepare = vql_pci_reset_prepare,
	.reset_done = vql_pci_restart,
};

static struct pci_driver vql_pci_driver = {
	.name = KBUILD_MODNAME,
	.id_table = NULL, /* see above */
	.probe = vql_pci_probe,
	.remove = vql_pci_remove,
	.shutdown = vql_pci_shutdown,
	.err_handler = &vql_pci_errors,
	.driver.pm = pm_sleep_ptr(&vql_pci_pm),
};

int vql_ctrl_init(void) { return pci_register_driver(&vql_pci_driver); }

void vql_ctrl_exit(void) { pci_unregister_driver(&vql_pci_driver); }
