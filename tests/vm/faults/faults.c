// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults that tests want. Without a parameter it warns when it is loaded, and does not stay: shows that the tests see a
 * kernel's complaints. With stack_end=1 the kernel dies as of a task that has written beyond the end of its stack: shows
 * what the tests make of that. With mute=1 it stays, and as long as it does, the module vqlane sees no answer to an admin
 * command: the emulated drive answers each at once, or says that it has failed.
 */
#include <linux/bug.h>
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/panic.h>

static bool stack_end;
module_param(stack_end, bool, 0);
static bool mute;
module_param(mute, bool, 0);

static noinline void nothing(void) {}

/* At the function's first instruction: another function is called in its place. */
static int skip(struct kprobe *probe, struct pt_regs *regs)
{
	regs->ip = (unsigned long)nothing;
	return 1;
}

static struct kprobe admin_reap = {.symbol_name = "vqlane:admin_reap", .pre_handler = skip};

static int __init faults_init(void)
{
	if (stack_end)
		panic("corrupted stack end detected inside scheduler\n"); /* schedule_debug() in kernel/sched/core.c */
	if (mute)
		return register_kprobe(&admin_reap);
	WARN(1, "provoked by a test\n");
	return -ECANCELED;
}
module_init(faults_init);

static void __exit faults_exit(void) { unregister_kprobe(&admin_reap); }
module_exit(faults_exit);

MODULE_DESCRIPTION("Faults that tests want");
MODULE_LICENSE("GPL");
