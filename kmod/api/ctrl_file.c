// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/vqlane/nvme-…: what a daemon may know of a controller, and ask of it. An open file keeps the
 * controller's structure, not its hardware: that goes when the driver is unbound, at any time.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "nvme/ctrl.h"

struct ctrl_file {
	struct vql_ctrl *ctrl;
	u32 seen; /* of ctrl->news */
};

static long ctrl_info(struct ctrl_file *file, struct vql_ctrl_info __user *arg)
{
	struct vql_ctrl *ctrl = file->ctrl;
	struct vql_ctrl_info info;
	int err = vql_copy_in(&info, arg, sizeof(info));

	if (err)
		return err;
	if (memchr_inv(info.reserved, 0, sizeof(info.reserved)))
		return -EINVAL;
	/* Without ctrl->lock: asking must not hang while a controller is being reset. */
	spin_lock(&ctrl->info_lock);
	info = ctrl->info;
	file->seen = ctrl->news;
	spin_unlock(&ctrl->info_lock);
	info.size = sizeof(info);
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

/* Fill @info from Identify, or say in it why the namespace cannot be served. */
static int ns_parse(struct vql_ctrl *ctrl, const struct nvme_id_ns *id, struct vql_ns_info *info)
{
	const struct nvme_lbaf *format = &id->lbaf[nvme_lbaf_index(id->flbas)];
	u64 blocks = le64_to_cpu(id->nsze);
	u32 metadata = le16_to_cpu(format->ms);

	if (!blocks)
		return -ENOENT; /* all zeroes: not active */
	if (format->ds != 9 && format->ds != 12)
		snprintf(info->reason, sizeof(info->reason),
			 "blocks of 2^%u bytes: only 512 and 4096 are served", format->ds);
	else if (id->dps & NVME_NS_DPS_PI_MASK)
		snprintf(info->reason, sizeof(info->reason),
			 "formatted with protection information (type %u)",
			 id->dps & NVME_NS_DPS_PI_MASK);
	else if (metadata)
		snprintf(info->reason, sizeof(info->reason),
			 "formatted with %u bytes of metadata a block", metadata);
	else if (blocks > U64_MAX >> format->ds)
		snprintf(info->reason, sizeof(info->reason), "its size makes no sense");
	else {
		info->blocks = blocks;
		info->block_bytes = 1u << format->ds;
		info->boundary_blocks = le16_to_cpu(id->noiob);
		if (!info->boundary_blocks && ctrl->quirks & VQL_QUIRK_STRIPE)
			info->boundary_blocks = ctrl->info.max_transfer >> format->ds;
		return 0;
	}
	return -EOPNOTSUPP;
}

int vql_ctrl_ns(struct vql_ctrl *ctrl, struct vql_ns_info *info)
{
	int err;

	if (!info->nsid || info->nsid >= 0xfffffffe)
		return -ENOENT; /* those that mean none, and all */
	memset(info->reason, 0, sizeof(info->reason));
	info->blocks = 0;
	info->block_bytes = 0;
	info->boundary_blocks = 0;

	err = vql_ctrl_lock_live(ctrl);
	if (err)
		return err;
	err = vql_admin_identify(ctrl, NVME_ID_CNS_NS, info->nsid);
	if (!err)
		err = ns_parse(ctrl, ctrl->admin.data.cpu, info);
	mutex_unlock(&ctrl->lock);

	if (err > 0)
		err = err == NVME_SC_INVALID_NS ? -ENOENT : -EIO;
	return err;
}

static long ctrl_ns_info(struct vql_ctrl *ctrl, struct vql_ns_info __user *arg)
{
	struct vql_ns_info info;
	int err = vql_copy_in(&info, arg, sizeof(info));

	if (err)
		return err;
	if (info.flags || info.reserved)
		return -EINVAL;
	err = vql_ctrl_ns(ctrl, &info);
	if (err && err != -EOPNOTSUPP)
		return err;
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : err;
}

static int admin_read_validate(const struct vql_admin_read *req)
{
	bool takes_nsid = req->what != VQL_ADMIN_IDENTIFY_CTRL;

	if (req->what > VQL_ADMIN_SMART || (req->nsid && !takes_nsid))
		return -EINVAL;
	if (req->bytes != (req->what == VQL_ADMIN_SMART ? 512 : VQL_ADMIN_DATA_BYTES))
		return -EINVAL;
	return 0;
}

static int admin_read_run(struct vql_ctrl *ctrl, const struct vql_admin_read *req)
{
	switch (req->what) {
	case VQL_ADMIN_IDENTIFY_CTRL: return vql_admin_identify(ctrl, NVME_ID_CNS_CTRL, 0);
	case VQL_ADMIN_IDENTIFY_NS: return vql_admin_identify(ctrl, NVME_ID_CNS_NS, req->nsid);
	case VQL_ADMIN_ACTIVE_NS:
		return vql_admin_identify(ctrl, NVME_ID_CNS_NS_ACTIVE_LIST, req->nsid);
	default:
		/* Events are told once, and to the module: it is the one who asks for the next. */
		return vql_admin_log(ctrl, NVME_LOG_SMART, req->nsid, req->bytes, true);
	}
}

static long ctrl_admin_read(struct vql_ctrl *ctrl, struct vql_admin_read __user *arg)
{
	struct vql_admin_read req;
	void *data;
	int err = vql_copy_in(&req, arg, sizeof(req));

	if (!err)
		err = admin_read_validate(&req);
	if (err)
		return err;
	data = kmalloc(req.bytes, GFP_KERNEL);
	if (!data)
		return -ENOMEM;
	err = vql_ctrl_lock_live(ctrl);
	if (err)
		goto out;
	err = admin_read_run(ctrl, &req);
	if (!err)
		memcpy(data, ctrl->admin.data.cpu, req.bytes);
	mutex_unlock(&ctrl->lock);

	if (err > 0)
		err = err == NVME_SC_INVALID_NS ? -ENOENT : -EIO;
	else if (!err && copy_to_user(u64_to_user_ptr(req.data), data, req.bytes))
		err = -EFAULT;
out:
	kfree(data);
	return err;
}

static long ctrl_reset(struct vql_ctrl *ctrl)
{
	long err = mutex_lock_killable(&ctrl->lock);

	if (err)
		return err;
	err = vql_ctrl_usable(ctrl);
	if (!err) {
		/* Who asks for this has had an answer to Abort: the controller takes commands. */
		vql_ctrl_quiesce(ctrl);
		err = vql_ctrl_reset(ctrl);
	}
	mutex_unlock(&ctrl->lock);
	return err ?: vql_ctrl_wait_restarted(ctrl);
}

static long ctrl_file_ioctl(struct file *f, unsigned int cmd, unsigned long arg)
{
	struct ctrl_file *file = f->private_data;
	void __user *ptr = (void __user *)arg;

	switch (cmd) {
	case VQL_IOC_CTRL_INFO: return ctrl_info(file, ptr);
	case VQL_IOC_NS_INFO: return ctrl_ns_info(file->ctrl, ptr);
	case VQL_IOC_ADMIN_READ: return ctrl_admin_read(file->ctrl, ptr);
	case VQL_IOC_QPAIR_CREATE: return vql_qpair_create(file->ctrl, ptr);
	case VQL_IOC_CTRL_RESET: return ctrl_reset(file->ctrl);
	default: return -ENOTTY;
	}
}

static __poll_t ctrl_file_poll(struct file *f, poll_table *table)
{
	struct ctrl_file *file = f->private_data;
	struct vql_ctrl *ctrl = file->ctrl;
	__poll_t mask = 0;

	poll_wait(f, &ctrl->wait, table);
	spin_lock(&ctrl->info_lock);
	if (ctrl->news != file->seen)
		mask |= EPOLLPRI;
	if (ctrl->info.state == VQL_CTRL_DEAD)
		mask |= EPOLLHUP;
	spin_unlock(&ctrl->info_lock);
	return mask;
}

/* The misc device's lock is held: it is still registered, so the controller is there. */
static int ctrl_file_open(struct inode *inode, struct file *f)
{
	struct vql_ctrl *ctrl = container_of(f->private_data, struct vql_ctrl, misc);
	struct ctrl_file *file;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	file = kzalloc(sizeof(*file), GFP_KERNEL);
	if (!file)
		return -ENOMEM;
	vql_ctrl_get(ctrl);
	file->ctrl = ctrl;
	f->private_data = file;
	return 0;
}

static int ctrl_file_release(struct inode *inode, struct file *f)
{
	struct ctrl_file *file = f->private_data;

	vql_ctrl_put(file->ctrl);
	kfree(file);
	return 0;
}

static const struct file_operations ctrl_fops = {
	.owner = THIS_MODULE,
	.open = ctrl_file_open,
	.release = ctrl_file_release,
	.unlocked_ioctl = ctrl_file_ioctl,
	.poll = ctrl_file_poll,
};

struct vql_ctrl *vql_ctrl_of_fd(int fd)
{
	struct file *f = fget(fd);
	struct vql_ctrl *ctrl = ERR_PTR(-EINVAL);

	if (!f)
		return ERR_PTR(-EBADF);
	if (f->f_op == &ctrl_fops) {
		ctrl = ((struct ctrl_file *)f->private_data)->ctrl;
		vql_ctrl_get(ctrl);
	}
	fput(f);
	return ctrl;
}

int vql_ctrl_publish(struct vql_ctrl *ctrl)
{
	snprintf(ctrl->node_name, sizeof(ctrl->node_name), "vqlane/nvme-%s", ctrl->name);
	ctrl->misc = (struct miscdevice){
		.minor = MISC_DYNAMIC_MINOR,
		.name = ctrl->misc_name,
		.nodename = ctrl->node_name,
		.mode = 0600,
		.fops = &ctrl_fops,
		.parent = &ctrl->pdev->dev,
	};
	return misc_register(&ctrl->misc);
}

void vql_ctrl_unpublish(struct vql_ctrl *ctrl) { misc_deregister(&ctrl->misc); }
