// SPDX-License-Identifier: GPL-2.0-only
/*
 * Policies for the cases remap, remap-lane and nvme-loss, one in each object: "make vm-programs"
 * compiles this file once for each, with -DPOLICY_its-name. Most are for the verifier to refuse;
 * what the last ones answer to reads of the boot-sector guest's blocks is for the module to judge.
 */
#include "lookup.bpf.h"

#include <bpf/bpf_core_read.h>

#if defined(POLICY_sleepable)
#define SECTION "struct_ops.s/remap"
#else
#define SECTION "struct_ops/remap"
#endif

/* What a later version might have. */
struct vqlane_remap_req___newer {
    __u64 generation;
} __attribute__((preserve_access_index));

struct task_struct {
    int prio;
} __attribute__((preserve_access_index));

void* bpf_rdonly_cast(const void* obj, __u32 btf_id) __ksym __weak;

#if !defined(POLICY_empty) && !defined(POLICY_no_op)
SEC(SECTION)
int BPF_PROG(remap, struct vqlane_remap_req* req) {
#if defined(POLICY_slot)
    req->slot = 1;
#elif defined(POLICY_sector)
    req->sector = 0;
#elif defined(POLICY_reserved)
    req->reserved = 1;
#elif defined(POLICY_straddle)
    *(volatile __u64*)((char*)req + 20) = 0; /* the end of sectors, and verdict */
#elif defined(POLICY_forged)
    struct vqlane_remap_req* other = bpf_rdonly_cast(
        (void*)0xffff888000000000, bpf_core_type_id_kernel(struct vqlane_remap_req));

    other->verdict = VQL_SERVE;
#elif defined(POLICY_task)
    struct task_struct* task = (struct task_struct*)bpf_get_current_task_btf();

    task->prio = 0;
#elif defined(POLICY_endless)
    while (bpf_ktime_get_ns())
        ;
#elif defined(POLICY_newer)
    return (int)((struct vqlane_remap_req___newer*)req)->generation;
#elif defined(POLICY_straight)
    req->target_sector = req->sector;
    req->target_sectors = req->sectors;
    req->verdict = VQL_SERVE; /* of target 0 */
    return 0;
#elif defined(POLICY_copy) || defined(POLICY_beyond) || defined(POLICY_stranger)
    const bool block = req->op == VQL_OP_READ && req->sector >= 1 && req->sector <= 512;

#if defined(POLICY_copy)
    return vql_table_lookup(req, req->sector + (block ? 65536 : 0), req->sectors);
#else
    if (vql_table_lookup(req, req->sector, req->sectors))
        return 1;
#if defined(POLICY_beyond)
    if (block)
        req->target_sector += 1 << 18; /* 128 MiB: on the drive, and not the disk's */
#else
    if (block)
        req->target = VQL_MAX_TARGETS - 1;
#endif
    return 0;
#endif
#endif
    return 1; /* no answer: the poll lane has one */
}
#endif

#if !defined(POLICY_empty)
SEC(".struct_ops.link")
struct vqlane_remap_ops quiet = {
#if defined(POLICY_no_op)
    .disk = "vm1", // of nothing but zeros it would not be in the object
#else
    .remap = (void*)remap,
#endif
#if defined(POLICY_named)
    .disk = "another",
#endif
};
#endif

#if defined(POLICY_two)
SEC(".struct_ops.link")
struct vqlane_remap_ops second = {.remap = (void*)remap};
#endif

char LICENSE[] SEC("license") = "GPL";
