/* SPDX-License-Identifier: GPL-2.0-only */
/* What remap_diff.bpf.c and remap_diff_test.cc share. */
#ifndef REMAP_DIFF_H
#define REMAP_DIFF_H

#include "vqlane/remap.h"

enum {
    REMAP_DIFF_CHUNKS = 4096, /* words of the extent table */
    REMAP_DIFF_BATCH = 16384, /* lookups in one run of the program */
};

/* One lookup: asked by the test, answered by the program. */
struct remap_diff_case {
    __u64 sector;
    __u64 sectors;
    __u32 chunk_shift;
    __u32 answered; /* 1 once the program has been here */
    struct vql_remap answer;
};

/* The context of the program: how many cases, from the first on. */
struct remap_diff_run {
    __u32 cases;
    __u32 done;
};

#endif
