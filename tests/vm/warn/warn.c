// SPDX-License-Identifier: GPL-2.0-only
/*
 * Warns when it is loaded, and does not stay: shows that the tests see a kernel's complaints. With stack_end=1 the
 * kernel dies as of a task that has written beyond the end of its stack: shows what the tests make of that.
 */
#include <linux/bug.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/panic.h>

static bool stack_end;
module_param(stack_end, bool, 0);

static int __init warn_init(void)
{
	if (stack_end)
		panic("corrupted stack end detected inside scheduler\n"); /* schedule_debug() in kernel/sched/core.c */
	WARN(1, "provoked by a test\n");
	return -ECANCELED;
}
module_init(warn_init);

MODULE_DESCRIPTION("Warns");
MODULE_LICENSE("GPL");
