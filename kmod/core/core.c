// SPDX-License-Identifier: GPL-2.0-only
#include <linux/uaccess.h>

#include "core/core.h"

struct device *vql_root;

int vql_copy_in(void *to, const void __user *from, size_t bytes)
{
	u32 size;

	if (get_user(size, (const u32 __user *)from))
		return -EFAULT;
	if (size != bytes)
		return size > bytes ? -E2BIG : -EINVAL;
	if (copy_from_user(to, from, bytes))
		return -EFAULT;
	/* The caller may have changed it in between. */
	return *(u32 *)to == bytes ? 0 : -EINVAL;
}
