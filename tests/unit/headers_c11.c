/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The dialects. Linked into the unit tests, this file shows that the headers together are C11 as
 * well as C++20. scripts/check compiles it once per header and dialect, with VQL_HEADER naming the
 * one header, so that each stands alone: as strict C11, and as BPF C where BPF programs use it.
 * A compiler's back end sees what is inline only where it is used, so some of it is used here.
 */
#if defined(VQL_HEADER)
#include VQL_HEADER
#else
#include "vqlane/blk.h"
#include "vqlane/nvme.h"
#include "vqlane/remap.h"
#include "vqlane/stats.h"
#endif

#if defined(VQLANE_STATS_H)
__u32 use_stats(__u64 ns, __u64 bytes) {
    return vql_latency_bucket(ns) + vql_size_bucket(bytes);
}
#endif

#if defined(VQLANE_REMAP_H)
static inline __u64 no_word(const void* table, __u64 index) {
    return table ? index : 0;
}

static inline void no_run(struct vql_extent_run* run, __u32 further) {
    while (further-- && vql_extent_run_on(run, no_word))
        ;
}

__u64 use_remap(const void* table, __u64 sector) {
    return vql_remap_lookup(table, no_word, no_run, VQL_MIN_CHUNK_SHIFT, sector, 8).sector;
}
#endif

#if defined(VQLANE_BLK_H)
int use_blk(const struct vql_ring* r, struct vql_mem* m, struct vql_chain* c,
            const struct vql_blk_disk* d, struct vql_io* io, struct vql_blk_answer* answer) {
    int err = vql_chain_walk(r, m, vql_ring_peek(r), c);

    return err ? err : vql_blk_parse(c, d, io, answer);
}
#endif

#if defined(VQLANE_NVME_H)
bool use_nvme(const struct vql_nvme_queue* q, struct vql_nvme_prp* prp, struct vql_nvme_sgls* sgl,
              struct vql_nvme_sqe* sqe, struct vql_nvme_cqe* cqe) {
    vql_nvme_command(sqe, VQL_NVME_READ, 0, 1);
    vql_nvme_blocks(sqe, 0, 8, 0);
    vql_nvme_prp_begin(prp, NULL);
    if (!vql_nvme_prp_add(prp, q->pool_dma, 512) || !vql_nvme_sgl_add(sgl, q->pool_dma, 512))
        return false;
    vql_nvme_prp_end(prp, q->pool_dma, sqe);
    vql_nvme_sgl_end(sgl, q->pool_dma, sqe);
    vql_nvme_ring(q->sq_doorbell, q->sq_shadow, q->sq_event, 0, 1);
    return vql_nvme_cqe_take(q->cq, 1, cqe) && vql_nvme_status(cqe) == VQL_STATUS_OK;
}
#endif

/* ISO C wants at least one declaration. */
extern int headers_c11_is_not_empty;
