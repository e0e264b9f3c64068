// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drives that do not do what they tell. What is known of them by PCI identifiers is in a table; an operator
 * adds to it, or takes from it, by the module's parameter "quirks":
 *
 *     quirks=VENDOR:DEVICE:NAME[+NAME…][,VENDOR:DEVICE:NAME…]
 *
 * in hexadecimal as lspci -n has them, as in quirks=144d:a821:delay+no_shadow,8086:0953:none. What is said of
 * a drive there replaces what the table says. It holds from the next binding of a drive on.
 *
 * The identifiers are those for which Linux' own nvme driver has the same in its table.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/slab.h>

#include "nvme/ctrl.h"

enum {
	VQL_MAX_GIVEN = 64,         /* drives in the parameter */
	VQL_MAX_GIVEN_BYTES = 2048, /* of its text */
};

/* Of vendor and device: VQL_QUIRK_*. */
struct quirk {
	u16 vendor, device;
	u32 quirks;
};

static const struct {
	const char *name;
	u32 quirks;
} quirk_names[] = {
	{"none", 0},
	{"delay", VQL_QUIRK_DELAY},
	{"no_write_zeroes", VQL_QUIRK_NO_WRITE_ZEROES},
	{"no_discard", VQL_QUIRK_NO_DISCARD},
	{"no_shadow", VQL_QUIRK_NO_SHADOW},
	{"few_cns", VQL_QUIRK_FEW_CNS},
	{"dma48", VQL_QUIRK_DMA48},
	{"depth2", VQL_QUIRK_DEPTH2},
	{"depth64", VQL_QUIRK_DEPTH64},
	{"stripe", VQL_QUIRK_STRIPE},
};

static const struct quirk known[] = {
	{0x8086, 0x0953, VQL_QUIRK_STRIPE},          /* Intel 750, P3500, P3600, P3700 */
	{0x8086, 0x0a53, VQL_QUIRK_STRIPE},          /* Intel P3520 */
	{0x8086, 0x0a54, VQL_QUIRK_STRIPE},          /* Intel P4500, P4600 */
	{0x8086, 0x0a55, VQL_QUIRK_STRIPE},          /* Dell Express Flash P4600 */
	{0x8086, 0xf1a5, VQL_QUIRK_NO_WRITE_ZEROES}, /* Intel 600P, P3100 */
	{0x8086, 0x5845, VQL_QUIRK_FEW_CNS | VQL_QUIRK_NO_WRITE_ZEROES}, /* QEMU, with Intel's ID */
	{0x1217, 0x8760, VQL_QUIRK_DEPTH2},                              /* O2 Micro 64 GB */
	{0x1bb1, 0x0100, VQL_QUIRK_DELAY},                               /* Seagate Nytro */
	{0x1c58, 0x0003, VQL_QUIRK_DELAY},                               /* HGST SN100 */
	{0x1c58, 0x0023, VQL_QUIRK_DELAY},                               /* WDC SN200 */
	{0x1c5f, 0x0540, VQL_QUIRK_DELAY},                               /* Memblaze PBlaze4 */
	{0x144d, 0xa821, VQL_QUIRK_DELAY | VQL_QUIRK_DEPTH64},           /* Samsung PM1725 */
	{0x144d, 0xa822,
	 VQL_QUIRK_DELAY | VQL_QUIRK_DEPTH64 | VQL_QUIRK_NO_WRITE_ZEROES}, /* PM1725a */
	{0x144d, 0xa809, VQL_QUIRK_NO_WRITE_ZEROES}, /* Samsung MZALQ256HBJD */
	{0x144d, 0xa80b, VQL_QUIRK_NO_WRITE_ZEROES}, /* Samsung PM9B1 */
	{0x1987, 0x5019, VQL_QUIRK_NO_WRITE_ZEROES}, /* Phison E19 */
	{0x1987, 0x5021, VQL_QUIRK_NO_WRITE_ZEROES}, /* Phison E21 */
	{0x1c5c, 0x1504, VQL_QUIRK_NO_WRITE_ZEROES}, /* SK hynix PC400 */
	{0x1c5c, 0x1d59, VQL_QUIRK_NO_WRITE_ZEROES}, /* SK hynix BC901 */
	{0x15b7, 0x2001, VQL_QUIRK_NO_WRITE_ZEROES}, /* SanDisk Skyhawk */
	{0x1d97, 0x2263, VQL_QUIRK_NO_WRITE_ZEROES}, /* SPCC */
	{0x1cc4, 0x6302, VQL_QUIRK_NO_WRITE_ZEROES}, /* UMIS RPJTJ256MGE1QDY */
	{0x1cc4, 0x6303, VQL_QUIRK_NO_WRITE_ZEROES}, /* UMIS RPJTJ512MGE1QDY */
	{0x1d0f, 0x0061, VQL_QUIRK_DMA48},           /* Amazon EBS */
	{0x1d0f, 0x0065, VQL_QUIRK_DMA48},           /* Amazon EBS */
	{0x1d0f, 0x8061, VQL_QUIRK_DMA48},           /* Amazon EBS */
	{0x1d0f, 0xcd00, VQL_QUIRK_DMA48},           /* Amazon instance storage */
	{0x1d0f, 0xcd01, VQL_QUIRK_DMA48},           /* Amazon instance storage */
	{0x1d0f, 0xcd02, VQL_QUIRK_DMA48},           /* Amazon instance storage */
};

/* What the parameter says; all under given_lock. */
static DEFINE_MUTEX(given_lock);
static struct quirk given[VQL_MAX_GIVEN];
static unsigned int ngiven;
static char given_text[VQL_MAX_GIVEN_BYTES];

/* One name; false: there is none such. */
static bool parse_name(const char *name, u32 *quirks)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(quirk_names); i++)
		if (!strcmp(name, quirk_names[i].name)) {
			*quirks |= quirk_names[i].quirks;
			return true;
		}
	pr_err("quirks: \"%s\" is none: delay, no_write_zeroes, no_discard, no_shadow, few_cns, "
	       "dma48, "
	       "depth2, depth64, stripe or none\n",
	       name);
	return false;
}

/* VENDOR:DEVICE:NAME[+NAME…]; takes @text apart. */
static int parse_one(char *text, struct quirk *quirk)
{
	char *vendor = strsep(&text, ":"), *device = strsep(&text, ":"), *name;

	quirk->quirks = 0;
	if (!device || !text || strlen(vendor) != 4 || strlen(device) != 4 ||
	    kstrtou16(vendor, 16, &quirk->vendor) || kstrtou16(device, 16, &quirk->device)) {
		pr_err("quirks: near \"%s\": want VENDOR:DEVICE:NAME, four hexadecimal digits "
		       "each, as in 144d:a821:delay\n",
		       vendor);
		return -EINVAL;
	}
	while ((name = strsep(&text, "+")))
		if (!parse_name(name, &quirk->quirks))
			return -EINVAL;
	return 0;
}

/* All or nothing. */
static int quirks_set(const char *value, const struct kernel_param *param)
{
	struct quirk *fresh;
	char *text, *rest, *one;
	unsigned int n = 0;
	int err = -ENOMEM;

	if (!value || strlen(value) >= VQL_MAX_GIVEN_BYTES) {
		pr_err("quirks: none given, or more than %u bytes\n", VQL_MAX_GIVEN_BYTES - 1);
		return -EINVAL;
	}
	fresh = kcalloc(VQL_MAX_GIVEN, sizeof(*fresh), GFP_KERNEL);
	text = kstrdup(value, GFP_KERNEL);
	if (!fresh || !text)
		goto out;
	rest = strim(text); /* of the newline that echo writes */
	err = 0;
	if (!*rest)
		rest = NULL; /* none, as by default */
	while (!err && (one = strsep(&rest, ","))) {
		if (n == VQL_MAX_GIVEN) {
			pr_err("quirks: more than %u drives\n", VQL_MAX_GIVEN);
			err = -EINVAL;
		} else {
			err = parse_one(one, &fresh[n++]);
		}
	}
	if (err)
		goto out;
	mutex_lock(&given_lock);
	memcpy(given, fresh, sizeof(given));
	ngiven = n;
	strscpy(given_text, value, sizeof(given_text));
	strim(given_text);
	mutex_unlock(&given_lock);
out:
	kfree(text);
	kfree(fresh);
	return err;
}

static int quirks_get(char *buffer, const struct kernel_param *param)
{
	int n;

	mutex_lock(&given_lock);
	n = sysfs_emit(buffer, "%s\n", given_text);
	mutex_unlock(&given_lock);
	return n;
}

static const struct kernel_param_ops quirks_ops = {
	.set = quirks_set,
	.get = quirks_get,
};
module_param_cb(quirks, &quirks_ops, NULL, 0644);
MODULE_PARM_DESC(quirks, "drives that want care, as 144d:a821:delay+no_shadow,8086:0953:none "
			 "(see kmod/README.md); replaces what is known of them");

/* False: nothing is said of this drive. */
static bool find_quirks(const struct quirk *all, size_t n, const struct pci_dev *pdev, u32 *quirks)
{
	size_t i;

	for (i = 0; i < n; i++)
		if (all[i].vendor == pdev->vendor && all[i].device == pdev->device) {
			*quirks = all[i].quirks;
			return true;
		}
	return false;
}

void vql_ctrl_find_quirks(struct vql_ctrl *ctrl)
{
	bool is_given;
	size_t i;

	mutex_lock(&given_lock);
	is_given = find_quirks(given, ngiven, ctrl->pdev, &ctrl->quirks);
	mutex_unlock(&given_lock);
	if (!is_given)
		find_quirks(known, ARRAY_SIZE(known), ctrl->pdev, &ctrl->quirks);
	for (i = 0; i < ARRAY_SIZE(quirk_names); i++)
		if (ctrl->quirks & quirk_names[i].quirks)
			vql_ctrl_note(ctrl, "quirk %s (%s)\n", quirk_names[i].name,
				      is_given ? "of the module's parameter"
					       : "known of this drive");
}
