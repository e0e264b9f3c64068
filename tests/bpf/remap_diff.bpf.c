// SPDX-License-Identifier: GPL-2.0-only
/*
 * vql_remap_lookup() as BPF runs it: answers a batch of lookups over an array map, for
 * remap_diff_test.cc to compare with what the same header answers in C++. Questions and answers are
 * an array that the test mmaps, so that one run of the program does a whole batch.
 */
#include "remap_diff.h"

#include <bpf/bpf_helpers.h>
#include <linux/bpf.h>

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, REMAP_DIFF_CHUNKS);
    __type(key, __u32);
    __type(value, __u64);
} extents SEC(".maps");

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(map_flags, BPF_F_MMAPABLE);
    __uint(max_entries, REMAP_DIFF_BATCH);
    __type(key, __u32);
    __type(value, struct remap_diff_case);
} cases SEC(".maps");

static __always_inline __u64 word_at(const void* table, __u64 index) {
    __u32 key = (__u32)index;
    const __u64* word;

    if (index >= REMAP_DIFF_CHUNKS)
        return 0;
    word = bpf_map_lookup_elem((void*)table, &key);
    return word ? *(const volatile __u64*)word : 0;
}

static long run_round(__u32 round, void* run) {
    (void)round;
    return !vql_extent_run_on(run, word_at);
}

static __always_inline void run_to(struct vql_extent_run* run, __u32 further) {
    bpf_loop(further, run_round, run, 0);
}

static long one_case(__u32 index, void* ctx) {
    struct remap_diff_run* run = ctx;
    struct remap_diff_case* c = bpf_map_lookup_elem(&cases, &index);

    if (!c)
        return 1;
    c->answer = vql_remap_lookup(&extents, word_at, run_to, c->chunk_shift, c->sector, c->sectors);
    c->answered = 1;
    run->done++;
    return 0;
}

SEC("syscall")
int remap_diff(struct remap_diff_run* run) {
    struct remap_diff_run local = *run;

    bpf_loop(local.cases, one_case, &local, 0);
    run->done = local.done;
    return 0;
}

char _license[] SEC("license") = "GPL";
