/* SPDX-License-Identifier: GPL-2.0-only */
/* All that differs between the kernels that the module is built for. */
#ifndef _VQLANE_KMOD_COMPAT_H
#define _VQLANE_KMOD_COMPAT_H

#include <linux/device.h>
#include <linux/vdpa.h>
#include <linux/version.h>

/* ---- vDPA ---- */

/* Linux 6.18: who does a device's DMA mapping became a union of a device and something else. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
#define vql_vdpa_alloc(type, member, parent, ops, name) \
	vdpa_alloc_device(type, member, parent, ops, NULL, 1, 1, name, false)

static inline void vql_vdpa_set_dma_dev(struct vdpa_device *vdev, struct device *dev)
{
	vdev->vmap.dma_dev = dev;
}
#else
#define vql_vdpa_alloc(type, member, parent, ops, name) \
	vdpa_alloc_device(type, member, parent, ops, 1, 1, name, false)

static inline void vql_vdpa_set_dma_dev(struct vdpa_device *vdev, struct device *dev)
{
	vdev->dma_dev = dev;
}
#endif

/*
 * Only the driver of this name binds. A field of vdpa_device until all devices got one, which went
 * into stable releases too: Kbuild looks for it.
 */
static inline int vql_vdpa_force_driver(struct vdpa_device *vdev, const char *name)
{
#ifdef VQL_VDPA_HAS_DRIVER_OVERRIDE
	return driver_set_override(&vdev->dev, &vdev->driver_override, name, strlen(name));
#else
	return device_set_driver_override(&vdev->dev, name);
#endif
}

#endif
