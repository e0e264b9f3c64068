// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where a request's bytes rest, as BPF programs tell it: struct_ops vqlane_remap_ops.
 *
 * There is one default, and a disk may have a policy of its own. Who registers one is root, and its
 * answers are still not believed: the caller of vql_remap_ask() compares them with what the disk was
 * given. What the verifier has to see to is that a program writes nothing but its answer.
 *
 * Lifetime. A registered vqlane_remap_ops is part of a BPF map, and holds the module. The BPF core
 * frees it a grace period after unreg() or, for the older of two, after update(): so these take it out
 * of sight and need not wait, and who runs it is an RCU reader. A disk's pointer goes with unreg(), or
 * when the disk leaves the list in which unreg() looks for it, whichever is first: it never points to
 * what has been freed. Programs themselves run in the core's trampoline, which keeps them.
 */
#include <linux/bpf.h>
#include <linux/bpf_verifier.h>
#include <linux/btf.h>
#include <linux/module.h>
#include "disk/disk.h"

static struct vqlane_remap_ops __rcu *default_ops;

/* The module's types, and the request's among them: set before a program's instructions are looked at. */
static struct btf *module_btf;
static const struct btf_type *req_type;

/* ---- asking ---- */

bool vql_remap_ask(struct vql_disk *disk, struct vqlane_remap_req *req)
{
	const struct vqlane_remap_ops *ops;

	/* What a program leaves alone must not mean "serve, at sector 0 of target 0". */
	req->verdict = VQL_USER;
	req->status = VQL_STATUS_IOERR;
	req->target = 0;
	req->reserved = 0;
	req->target_sector = 0;
	req->target_sectors = 0;

	rcu_read_lock();
	ops = rcu_dereference(disk->policy);
	if (!ops)
		ops = rcu_dereference(default_ops);
	if (ops && ops->remap(req))
		req->verdict = VQL_USER;
	rcu_read_unlock();
	return ops;
}

/* ---- what a program may do ---- */

/*
 * Writes through pointers to the kernel's own types come here, and to whatever type: get_current_task_btf()
 * gives a trusted one to a task, bpf_rdonly_cast() one that is not trusted to whatever address. The one
 * that is both trusted and to a request is the argument.
 */
static int remap_struct_access(struct bpf_verifier_log *log, const struct bpf_reg_state *reg,
			       int off, int size)
{
	const int end = off + size;

	if (reg->type != (PTR_TO_BTF_ID | PTR_TRUSTED) ||
	    btf_type_by_id(reg->btf, reg->btf_id) != READ_ONCE(req_type)) {
		bpf_log(log, "vqlane: only the request that remap() was given may be written to\n");
		return -EACCES;
	}
	if (off >= (int)offsetof(struct vqlane_remap_req, verdict) &&
	    end <= (int)offsetof(struct vqlane_remap_req, reserved))
		return SCALAR_VALUE;
	if (off >= (int)offsetof(struct vqlane_remap_req, target_sector) &&
	    end <= (int)sizeof(struct vqlane_remap_req))
		return SCALAR_VALUE;
	bpf_log(log,
		"vqlane: bytes %d to %d of struct vqlane_remap_req are not a program's to write\n",
		off, end - 1);
	return -EACCES;
}

static bool remap_is_valid_access(int off, int size, enum bpf_access_type type,
				  const struct bpf_prog *prog, struct bpf_insn_access_aux *info)
{
	return bpf_tracing_btf_ctx_access(off, size, type, prog, info);
}

static const struct bpf_verifier_ops remap_verifier_ops = {
	.get_func_proto = bpf_base_func_proto,
	.is_valid_access = remap_is_valid_access,
	.btf_struct_access = remap_struct_access,
};

/* ---- registration ---- */

static int remap_init(struct btf *btf)
{
	module_btf = btf;
	return 0;
}

/* A program is loaded for @member, which can only be remap(): take its argument's type from there. */
static int remap_check_member(const struct btf_type *t, const struct btf_member *member,
			      const struct bpf_prog *prog)
{
	const struct btf_type *type;

	if (prog->sleepable)
		return -EINVAL;                          /* it is called with interrupts off */
	type = btf_type_by_id(module_btf, member->type); /* pointer */
	type = btf_type_by_id(module_btf, type->type);   /* function */
	type = btf_type_by_id(module_btf, btf_params(type)[0].type); /* pointer */
	/* Loads may run beside each other; they all find the same. */
	WRITE_ONCE(req_type, btf_type_by_id(module_btf, type->type));
	return 0;
}

/* Returns 1: the member is dealt with here; 0: the BPF core does it; or an error. */
static int remap_init_member(const struct btf_type *t, const struct btf_member *member, void *kdata,
			     const void *udata)
{
	const struct vqlane_remap_ops *from = udata;
	struct vqlane_remap_ops *to = kdata;

	if (__btf_member_bit_offset(t, member) !=
	    offsetof(struct vqlane_remap_ops, disk) * BITS_PER_BYTE)
		return 0;
	if (from->disk[0] ? !vql_disk_name_is_valid(from->disk)
			  : !!memchr_inv(from->disk, 0, sizeof(from->disk)))
		return -EINVAL;
	memcpy(to->disk, from->disk, sizeof(to->disk));
	return 1;
}

static int remap_validate(void *kdata)
{
	const struct vqlane_remap_ops *ops = kdata;

	return ops->remap ? 0 : -EINVAL;
}

/* Put @new where @old is; NULL is none. */
static int remap_replace(const char *disk, struct vqlane_remap_ops *old,
			 struct vqlane_remap_ops *new)
{
	struct vqlane_remap_ops __rcu *was;

	if (disk[0])
		return vql_disk_replace_policy(disk, old, new);
	/* Orders as rcu_assign_pointer() does. */
	was = cmpxchg(&default_ops, RCU_INITIALIZER(old), RCU_INITIALIZER(new));
	return unrcu_pointer(was) == old ? 0 : -EEXIST;
}

static int remap_reg(void *kdata, struct bpf_link *link)
{
	struct vqlane_remap_ops *ops = kdata;

	return remap_replace(ops->disk, NULL, ops);
}

static void remap_unreg(void *kdata, struct bpf_link *link)
{
	struct vqlane_remap_ops *ops = kdata;

	/* Its disk may be gone, or be another one of the same name: then there is nothing to take away. */
	remap_replace(ops->disk, ops, NULL);
}

static int remap_update(void *kdata, void *old_kdata, struct bpf_link *link)
{
	struct vqlane_remap_ops *ops = kdata, *old = old_kdata;

	if (strcmp(ops->disk, old->disk))
		return -EINVAL;
	return remap_replace(ops->disk, old, ops);
}

/* What remap() looks like, for control flow integrity and for the BPF core; never called. */
static int remap_stub(struct vqlane_remap_req *req) { return 0; }

static struct vqlane_remap_ops remap_stubs = {
	.remap = remap_stub,
};

static struct bpf_struct_ops remap_struct_ops = {
	.verifier_ops = &remap_verifier_ops,
	.init = remap_init,
	.check_member = remap_check_member,
	.init_member = remap_init_member,
	.validate = remap_validate,
	.reg = remap_reg,
	.unreg = remap_unreg,
	.update = remap_update,
	.cfi_stubs = &remap_stubs,
	.owner = THIS_MODULE,
	.name = "vqlane_remap_ops",
};

/*
 * Ends with the module: a registered policy holds it. A module that was built without BTF loads, and the
 * kernel says in its log that there is no registering: then all requests are the poll lane's.
 */
int vql_remap_init(void)
{
	BUILD_BUG_ON(VQL_DISK_NAME_BYTES != VQL_NAME_BYTES);
	return register_bpf_struct_ops(&remap_struct_ops, vqlane_remap_ops);
}
