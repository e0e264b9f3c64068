// SPDX-License-Identifier: GPL-2.0-only
/* The module: its parts start in order and end in reverse. And /dev/vqlane/control. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "disk/disk.h"
#include "lane/lane.h"
#include "mem/mem.h"
#include "nvme/nvme.h"

static long control_version(struct vql_version __user *arg)
{
	struct vql_version version;
	int err = vql_copy_in(&version, arg, sizeof(version));

	if (err)
		return err;
	if (version.reserved)
		return -EINVAL;
	version.abi = VQL_ABI_VERSION;
	version.max_queues = VQL_MAX_QUEUES;
	version.max_queue_size = VQL_MAX_QUEUE_SIZE;
	version.max_disks = VQL_MAX_DISKS;
	return copy_to_user(arg, &version, sizeof(version)) ? -EFAULT : 0;
}

static long control_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *ptr = (void __user *)arg;

	switch (cmd) {
	case VQL_IOC_VERSION: return control_version(ptr);
	case VQL_IOC_DISK_CREATE: return vql_disk_create(ptr);
	case VQL_IOC_DISK_CLAIM: return vql_disk_claim(ptr);
	case VQL_IOC_DISK_NEXT: return vql_disk_next(ptr);
	case VQL_IOC_MSPACE_CREATE: return vql_mspace_create_fd(ptr);
	default: return -ENOTTY;
	}
}

static int control_open(struct inode *inode, struct file *file)
{
	return capable(CAP_SYS_RAWIO) ? 0 : -EPERM;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = control_open,
	.unlocked_ioctl = control_ioctl,
};

static struct miscdevice control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vqlane-control",
	.nodename = "vqlane/control",
	.mode = 0600,
	.fops = &control_fops,
};

static int __init vql_init(void)
{
	int err;

	/* Pages are 4096 bytes in the interface, as they are in NVMe here. */
	BUILD_BUG_ON(PAGE_SIZE != 4096);

	vql_root = root_device_register(KBUILD_MODNAME);
	if (IS_ERR(vql_root))
		return PTR_ERR(vql_root);
	err = vql_lane_init();
	if (err)
		goto err_root;
	err = vql_disk_init();
	if (err)
		goto err_lane;
	err = vql_ctrl_init();
	if (err)
		goto err_disk;
	err = vql_remap_init();
	if (err)
		goto err_ctrl;
	err = misc_register(&control); /* last: from here on there are callers */
	if (err)
		goto err_ctrl;
	return 0;

err_ctrl:
	vql_ctrl_exit();
err_disk:
	vql_disk_exit();
err_lane:
	vql_lane_exit();
err_root:
	root_device_unregister(vql_root);
	return err;
}

static void __exit vql_exit(void)
{
	misc_deregister(&control);
	vql_ctrl_exit();
	vql_disk_exit();
	vql_lane_exit();
	root_device_unregister(vql_root);
}

module_init(vql_init);
module_exit(vql_exit);

MODULE_LICENSE("GPL");
MODULE_VERSION(VQL_VERSION);
MODULE_DESCRIPTION("Guest virtqueues and NVMe queues in a poller's address space");
