// SPDX-License-Identifier: GPL-2.0-only
/* Warns when it is loaded, and does not stay: shows that the tests see a kernel's complaints. */
#include <linux/bug.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>

static int __init warn_init(void)
{
	WARN(1, "provoked by a test\n");
	return -ECANCELED;
}
module_init(warn_init);

MODULE_DESCRIPTION("Warns");
MODULE_LICENSE("GPL");
